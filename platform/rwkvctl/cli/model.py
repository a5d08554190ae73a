"""`rwkvctl model`: registered models, and models to look at, to compare and to take elsewhere."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rwkvctl.base.errors import UserError
from rwkvctl.cli import model_calibrate, model_exchange, model_grid

if TYPE_CHECKING:
    from rwkvctl.models.export import Exported
    from rwkvctl.models.export_whole import ExportedWhole
    from rwkvctl.reports.compare import Figures

app = typer.Typer(no_args_is_help=True)
app.command()(model_exchange.push)
app.command()(model_exchange.pull)
app.command()(model_calibrate.calibrate)
app.command()(model_grid.grid)
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
EXPORTED = ("onnx", "pt2")


def tracking_uri() -> str:
    from rwkvctl.config import settings

    return settings.load().tracking_uri


@app.command(name="list")
def list_(as_json: Json = False) -> None:
    """List registered models, their newest version and their aliases."""
    from rwkvctl.registry import versions

    models = versions.list_models(tracking_uri())
    if as_json:
        print(json.dumps([asdict(model) for model in models], indent=2))
        return
    for model in models:
        aliases = ", ".join(f"{alias} -> {version}" for alias, version in model.aliases.items())
        print(f"{model.name}  versions {model.versions}  latest {model.latest}  {aliases}")
    if not models:
        print("no registered models: rwkvctl finetune registers one")


@app.command()
def show(name: str, as_json: Json = False) -> None:
    """Show every version of a model: where it comes from and what it scored."""
    from rwkvctl.registry.versions import show as versions_of

    versions = versions_of(name, tracking_uri())
    if as_json:
        print(json.dumps([asdict(version) for version in versions], indent=2))
        return
    for version in versions:
        print(f"{name}/{version.version}  aliases: {', '.join(version.aliases) or '-'}  run {version.run_id}")
        for key, value in sorted((version.tags | {k: str(v) for k, v in version.metrics.items()}).items()):
            print(f"  {key}: {value}")
        for note in version.notes:
            print(f"  note: {note}")


@app.command()
def promote(
    name: str,
    version: int,
    alias: Annotated[str, typer.Option(help="Alias to set, for example champion.")],
    gates: Annotated[
        list[str] | None,
        typer.Option("--gate", help="Condition that must hold, for example dsc_strict>=0.8 (of the test part)."),
    ] = None,
    rules: Annotated[Path | None, typer.Option(help="YAML file of rules that must hold (docs/registry.md).")] = None,
    as_json: Json = False,
) -> None:
    """Point an alias at a version, if every gate and every rule holds, those on the server included."""
    from rwkvctl.config.specs.rules import read
    from rwkvctl.registry.promote import promote as run

    held_to = None if rules is None else read(rules)[0]
    passed = run(name, version, alias, gates=gates or [], rules=held_to, tracking_uri=tracking_uri())
    if as_json:
        print(json.dumps({"name": name, "version": version, "alias": alias, "gates": passed}, indent=2))
        return
    for line in passed:
        print(line)
    print(f"models:/{name}@{alias} is now version {version}")


@app.command()
def rules(
    name: str,
    keep: Annotated[Path | None, typer.Option("--set", help="YAML file: every promotion is held to it.")] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Lift the rules.")] = False,
) -> None:
    """Show, set or lift the rules that the tracking server has for the promotions of a model."""
    from rwkvctl.config.specs.rules import read
    from rwkvctl.registry import promote as promotions

    if keep is not None and clear:
        raise UserError("--set and --clear: give one of them")
    if keep is not None or clear:
        promotions.keep_on_server(name, "" if keep is None else read(keep)[1], tracking_uri())
    found = promotions.text_on_server(name, tracking_uri())
    print(found.rstrip() if found else f"no rules for {name} on the tracking server")


@app.command()
def history(
    name: str,
    alias: Annotated[str | None, typer.Option(help="Only of this alias.")] = None,
    as_json: Json = False,
) -> None:
    """Show where a model's aliases have pointed: who moved them when, and by which rules."""
    from rwkvctl.registry import aliases
    from rwkvctl.registry.versions import aliases_of
    from rwkvctl.runs.mlflow_client import connect

    client = connect(tracking_uri())
    aliases_of(client, name)
    moves = aliases.history(client, name, alias)
    if as_json:
        print(json.dumps([asdict(one) for one in moves], indent=2))
        return
    for one in moves:
        print(f"{one.when}  {one.alias}  {one.before or '-'} -> {one.version}  {one.kind}  {one.who}")
        for line in one.checks:
            print(f"    {line}")
    if not moves:
        print(f"no alias of {name} was moved by rwkvctl yet")


@app.command()
def rollback(
    name: str,
    alias: Annotated[str, typer.Option(help="Alias to move back, for example champion.")],
    as_json: Json = False,
) -> None:
    """Point an alias at the version that it pointed to before the last promotion."""
    from rwkvctl.registry import aliases
    from rwkvctl.runs.mlflow_client import connect

    made = aliases.roll_back(connect(tracking_uri()), name, alias)
    if as_json:
        print(json.dumps(asdict(made), indent=2))
        return
    print(f"models:/{name}@{alias} is version {made.version} again (it was {made.before})")


@app.command()
def lineage(
    model: Annotated[str, typer.Argument(help="models:/NAME/VERSION or models:/NAME@ALIAS.")], as_json: Json = False
) -> None:
    """Show where a version comes from: run, data, code, encoder, and where that comes from."""
    from rwkvctl.registry import lineage as origins

    found = origins.lineage(model, tracking_uri())
    print(json.dumps(asdict(found), indent=2) if as_json else "\n".join(origins.lines(found)))


@app.command()
def card(
    model: Annotated[str, typer.Argument(help="models:/NAME/VERSION or models:/NAME@ALIAS.")],
    out: Annotated[Path | None, typer.Option(help="File to write, .md or .json [default: print Markdown]")] = None,
    as_json: Json = False,
) -> None:
    """Write the card of a version: use, data, scores with intervals, limits, lineage."""
    from rwkvctl.base.files import write_bytes
    from rwkvctl.registry import card as cards

    if out is not None and out.suffix not in (".md", ".json"):
        raise UserError(f"--out {out}: give a name that ends with .md or .json")
    found = cards.card(model, tracking_uri())
    text = cards.as_json(found) + "\n" if as_json or (out and out.suffix == ".json") else cards.as_markdown(found)
    if out is None:
        print(text, end="")
        return
    write_bytes(out, text.encode())
    print(out)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="A run, models:/NAME@ALIAS, models:/NAME/VERSION, or a model folder.")],
    out: Annotated[Path, typer.Option(help="File to write.")],
    form: Annotated[
        str | None, typer.Option("--format", help="onnx, or pt2 for torch.export [default: by the ending of --out]")
    ] = None,
    inputs: Annotated[
        list[Path] | None,
        typer.Option("--check", help="File or folder whose masks must be those of predict, too. Repeatable."),
    ] = None,
    logits: Annotated[
        bool, typer.Option("--logits", help="The network alone: normalised images in, logits out.")
    ] = False,
    fixed_size: Annotated[
        bool, typer.Option("--fixed-size", help="With --logits: for images of the training size alone.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a trained model as one file, raw pixels or HU to class ids, and check that its masks are predict's."""
    if fixed_size and not logits:
        raise UserError("--fixed-size: is for --logits; without it the file takes images of any size")
    if inputs and logits:
        raise UserError("--check: compares masks, which a file of --logits does not give; leave one of them out")
    form = format_of(out, form)
    from rwkvctl.config import settings
    from rwkvctl.models import bundle, export_whole
    from rwkvctl.models.export import export as export_network
    from rwkvctl.registry import references

    machine = settings.load()
    folder = references.find_model_folder(model, machine.storage, machine.tracking_uri)
    network, info = bundle.load(folder)
    if info.kind == "classifier" and not logits:
        raise UserError(f"model {model}: is a classifier, which is exported as the network alone: add --logits")
    if logits:
        made = export_network(network, info, out, form, fixed_size=fixed_size)
        lines = [
            f"{size}: largest difference of logits {error:.1e} of the largest" for size, error in made.errors.items()
        ]
        shown(made, asdict(made), lines, as_json=as_json)
        return
    whole = export_whole.export(network, info, out, form, inputs)
    lines = [
        f"{one.input} {' x '.join(map(str, one.shape))}: {one.different:.3%} of the pixels differ from predict's"
        + ("" if one.probability is None else f", probabilities by {one.probability:.1e}")
        for one in whole.parity.compared
    ]
    fields = asdict(whole) | {"parity": whole.parity.as_fields()}
    shown(whole, fields, [*lines, f"what it takes and gives: {whole.path}.json"], as_json=as_json)


def format_of(out: Path, told: str | None) -> str:
    """That of a file to be exported, by its ending where the user does not tell it."""
    ending = out.suffix.removeprefix(".").lower()
    if told is None and ending not in EXPORTED:
        raise UserError(f"--out {out}: must end in .onnx or .pt2; or say which by --format")
    if told in EXPORTED and ending in EXPORTED and told != ending:
        raise UserError(f"--format {told}: --out {out} ends in .{ending}; leave one of them out")
    return told or ending


def shown(made: Exported | ExportedWhole, fields: dict[str, Any], lines: list[str], *, as_json: bool) -> None:
    """What was exported."""
    if as_json:
        print(json.dumps(fields, indent=2))
        return
    print(f"{made.path}  {made.format}  {made.bytes / 1e6:.1f} MB")
    print("\n".join(f"  {line}" for line in lines))


@app.command()
def compare(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Models, as NAME or NAME,field=value,...")],
    size: Annotated[int, typer.Option(min=1, help="Height and width of the images.")] = 256,
    num_classes: Annotated[int, typer.Option("--classes", min=1, help="Output channels.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 4,
    seconds: Annotated[float, typer.Option(min=0, help="How long each speed is measured.")] = 5.0,
    device: Annotated[str | None, typer.Option(help="cpu or cuda [default: the GPU if there is one]")] = None,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Measure models side by side: parameters, MACs, peak memory, images per second of training and inference."""
    import torch

    from rwkvctl.reports.compare import Setting
    from rwkvctl.reports.compare import compare as run

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise UserError(f"--device {device}: choose cpu, or cuda on a machine that has one")
    rows = list(run(names, Setting(size, num_classes, batch, device, seconds)))
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    elif as_csv:
        print_csv(rows)
    else:
        from rwkvctl.cli import show

        show.comparison(rows, f"{size} px, {num_classes} output channels, batch {batch}, {device}")


def print_csv(rows: list[Figures]) -> None:
    """A heading and a line a model, raw numbers."""
    import csv
    import sys

    table = [asdict(row) for row in rows]
    writer = csv.DictWriter(sys.stdout, list(table[0]))
    writer.writeheader()
    writer.writerows(table)


@app.command()
def erf(
    names: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Trained models as for export, or NAME,field=value,...")
    ],
    out: Annotated[Path, typer.Option(help="Figure to write: .png, .svg or .pdf.")],
    data: Annotated[Path | None, typer.Option(help="Data set whose test images are used [default: noise]")] = None,
    count: Annotated[int, typer.Option(min=1, help="Images to average over.")] = 16,
    size: Annotated[int, typer.Option(min=16, help="Height and width of the images.")] = 224,
    as_json: Json = False,
) -> None:
    """Draw the effective receptive field of each model's encoder (Fig. 3 of the paper)."""
    from rwkvctl.config import settings
    from rwkvctl.reports import erf as fields

    machine = settings.load()
    images = fields.images(data, count, size)
    found = {
        name: fields.receptive_field(fields.open_model(name, machine.storage, machine.tracking_uri), images)
        for name in names
    }
    fields.draw(found, out)
    if as_json:
        print(json.dumps({name: field.sides for name, field in found.items()}, indent=2))
        return
    for name, field in found.items():
        sides = ", ".join(f"{share:.0%} within {value:.0%}" for share, value in field.sides.items())
        print(f"{name}: {sides} of the image's side")
    print(out)


@app.command()
def plot(
    name: Annotated[str, typer.Argument(help="Registered model whose versions are compared.")],
    out: Annotated[Path, typer.Option(help="Figure to write: .png, .svg or .pdf.")],
    metric: Annotated[str, typer.Option(help="Metric of the versions.")] = "test/dsc_official/mean",
) -> None:
    """Plot accuracy against MACs over the versions of a registered model (Fig. 4 of the paper)."""
    from rwkvctl.pictures import figures
    from rwkvctl.registry.versions import show as versions_of

    versions = versions_of(name, tracking_uri())
    points = [
        figures.Point(
            version.tags.get("run", f"{name}/{version.version}"),
            version.metrics[metric],
            int(version.tags["macs_paper"]),
            int(version.tags["parameters"]),
        )
        for version in versions
        if metric in version.metrics
        and all(version.tags.get(key, "").isdigit() for key in ("macs_paper", "parameters"))
    ]
    if not points:
        raise UserError(f"{name}: no version has {metric}; score them first with: rwkvctl evaluate RUN --part test")
    figures.accuracy_against_macs(points, f"{name}: {metric}", out)
    print(f"{out}: {len(points)} versions")
