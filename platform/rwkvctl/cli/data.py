"""`rwkvctl data`: make, check and look at data sets."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from rwkvctl.base.errors import UserError
from rwkvctl.cli import data_export, data_print
from rwkvctl.cli.progress import AsJson, progress_bar

MOST_PROBLEMS = 12

app = typer.Typer(help="Make, check and look at data sets.", no_args_is_help=True)
app.add_typer(data_export.app, name="export")


@app.command()
def prepare(
    format_name: Annotated[str, typer.Argument(metavar="FORMAT", help="See: rwkvctl data list")],
    source: Annotated[
        list[str],
        typer.Option(help="Folder or archive (zip, tar, tar.gz) with the raw files, or s3://; may be repeated."),
    ],
    out: Annotated[
        str | None, typer.Option(help="New data set folder, or URI s3:// or gs:// [default: <data root>/<name>]")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of your own for it [default: FORMAT; of one's own images, that of --out]")
    ] = None,
    ratio: Annotated[
        str | None, typer.Option(help="Ratio train:val:test of random splits [default: 8:1:1, or the paper's]")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Published split of ACDC: wsl4mis_fold1_val21-30 or ssl4mis")
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="Seed of a random split; may be repeated [default: 41 1029 3407]")
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(help="What is one patient: none, a column, or a pattern for it in a path [default: found]"),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help="Names by mask value, background first: a,b,c; or a=0,b=85,c=#ff0000; or a table (csv, json, yaml)."
        ),
    ] = None,
    orientation: Annotated[
        str | None, typer.Option(help="Of raw Synapse slices: transunet, itk or emcad [default: transunet]")
    ] = None,
    busi_masks: Annotated[
        str | None, typer.Option(help="BUSI images with several masks: union or first [default: union]")
    ] = None,
    max_side: Annotated[int | None, typer.Option(help="Shrink larger ISIC images to so many pixels.")] = None,
    range_: Annotated[
        str | None,
        typer.Option(
            "--range",
            metavar="LOW,HIGH",
            help="Black and white of images of more than 8 bits [default: the least and the greatest value of all]",
        ),
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Of pairs, in quotes: which files are images; or a column. Again for further channels, such as depth.",
        ),
    ] = None,
    masks: Annotated[
        str | None,
        typer.Option(metavar="PATTERN", help="Of pairs: their masks, which have what * or {id} is in their image."),
    ] = None,
    annotator: Annotated[
        str | None, typer.Option(help="Of pairs: which one of several masks, by the further part of its name.")
    ] = None,
    csv: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="A table with a row an image: its mask, class, part or patient. imagetable takes several.",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="Of imagetable: the column of classes, or a column a class: A,B,... [default: found]"
        ),
    ] = None,
    split_from: Annotated[
        str | None,
        typer.Option(help="Of pairs, what says train, val, test: folders, lists, a column, a table, or a pattern."),
    ] = None,
    intensity: Annotated[
        str | None,
        typer.Option(
            metavar="nnunet|percentiles",
            help="Of volumes: how channels are normalised [default: nnunet for several and for CT, else percentiles]",
        ),
    ] = None,
    inside: Annotated[
        str | None,
        typer.Option(
            metavar="IMAGE,LABEL",
            help="Of arrays and stacks: which are image (or several, a channel each) and label.",
        ),
    ] = None,
    axes: Annotated[
        str | None,
        typer.Option(help="Of arrays: zyx, yxz, ..., z across slices; of stacks nyxc, ..., n images [default: found]"),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes [default: all cores]")] = None,
    allow_partial: Annotated[bool, typer.Option("--allow-partial", help="Accept a source that lacks files.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the data set in --out.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only say what would be made, with a picture of six samples; 1 for problems."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Convert raw files to a verified data set (shards, index, splits, manifest)."""
    from rwkvctl.config import settings
    from rwkvctl.data.convert import class_table
    from rwkvctl.data.convert.prepare import prepare as run
    from rwkvctl.data.images.deep import parse_range
    from rwkvctl.data.store import bucket
    from rwkvctl.data.store.manifest import Manifest

    location = out or str(_data_root() / (name or format_name))
    scratch = Path(settings.load().cache_dir)
    choices: dict[str, Any] = {
        "name": name,
        "classes": class_table.parse(classes) if classes else None,
        "ratio": ratio,
        "split": split,
        "seeds": seed or None,
        "groups": groups,
        "orientation": orientation,
        "busi_masks": busi_masks,
        "max_side": max_side,
        "range": None if range_ is None else parse_range(range_),
        "images": images[0] if images else None,
        "more_images": tuple(images[1:]) if images and images[1:] else None,
        "masks": masks,
        "annotator": annotator,
        "split_from": split_from,
        "intensity": intensity,
        "csv": csv[0] if csv else None,
        "more_csv": tuple(csv[1:]) if csv and csv[1:] else None,
        "labels": labels,
        "inside": inside,
        "axes": axes,
        "allow_partial": allow_partial,
    }
    if dry_run:
        _rehearse(format_name, source, location, choices, scratch / "dry-run", as_json)
        return
    with bucket.prepared(location, scratch, overwrite) as folder, progress_bar(quiet=as_json) as progress:
        run(format_name, source, folder, **choices, overwrite=overwrite, workers=workers, progress=progress)
    data_print.show(Manifest.load(location), as_json)


def _rehearse(
    format_name: str, source: list[str], location: str, choices: dict[str, Any], folder: Path, as_json: bool
) -> None:
    """Print what would be made, and write its picture into `folder`; exit code 1 when it would be refused."""
    from dataclasses import asdict

    from rwkvctl.base import files
    from rwkvctl.data.convert.rehearsal import rehearse

    found = rehearse(format_name, source, location.rstrip("/").rpartition("/")[2] or location, **choices)
    picture = folder / f"{found.dataset}.png" if found.sheet else None
    if picture:
        with _writable("cache_dir", picture):
            picture.parent.mkdir(parents=True, exist_ok=True)
            files.write_bytes(picture, found.sheet)
    if as_json:
        content = asdict(found) | {"sheet": str(picture) if picture else None}
        print(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        for line in data_print.rehearsal_lines(found):
            print(line)
        print(f"  picture      {picture}" if picture else "  picture      none, as nothing could be read")
        print(f"nothing was written to {location}")
    if found.problems:
        raise typer.Exit(1)


@app.command()
def verify(
    path: Annotated[str, typer.Argument(help="Folder or URI of a data set.")],
    deep: Annotated[bool, typer.Option("--deep", help="Also decode every image.")] = False,
    quarantine: Annotated[
        bool, typer.Option("--quarantine", help="List damaged samples beside the manifest and leave them out of runs.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check a data set against its manifest; exit code 1 when something is wrong."""
    from dataclasses import asdict

    from rwkvctl.data.store.verify import verify as run

    with progress_bar(quiet=as_json) as progress:
        report = run(path, deep=deep, progress=progress, set_apart=quarantine)
    if as_json:
        print(json.dumps({"ok": report.ok, **asdict(report)}, indent=2))
    else:
        for problem in report.problems:
            print(f"problem: {problem}")
        for warning in report.warnings:
            print(f"warning: {warning}")
        for why in report.quarantined.values():
            print(f"quarantined: {why}")
        count = len(report.problems)
        apart = f", {data_print.samples(len(report.quarantined))} in quarantine" if report.quarantined else ""
        state = f"sound{apart}" if report.ok else f"{count} problem{'s' if count > 1 else ''}"
        print(f"{report.root}: {state} ({report.samples} samples in {report.shards} shards)")
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def show(
    path: Annotated[str, typer.Argument(help="Folder or URI of a data set.")],
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet (PNG) of images with their masks.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print what a data set holds: counts, classes, sizes, splits."""
    from rwkvctl.data.store.manifest import Manifest

    manifest = Manifest.load(path)
    data_print.show(manifest, as_json)
    if sheet:
        from rwkvctl.base import files
        from rwkvctl.data.store.contact_sheet import contact_sheet

        with _writable("--sheet", sheet):
            files.write_bytes(sheet, contact_sheet(manifest))


@app.command()
def split(
    path: Annotated[str, typer.Argument(help="Folder of a data set.")],
    rule: Annotated[
        str | None,
        typer.Option(help="random:8:1:1, grouped:8:1:1, kfold:5 or grouped-kfold:5, whose test part rotates"),
    ] = None,
    folds: Annotated[
        int | None, typer.Option(help="So many splits whose val part rotates, in whole groups; test stays as it is.")
    ] = None,
    seed: Annotated[int, typer.Option()] = 41,
) -> None:
    """Add a split to a data set. `grouped` keeps patients, sequences, videos and near-duplicates together."""
    from rwkvctl.data.convert.resplit import add_folds, add_split
    from rwkvctl.data.store.manifest import Manifest

    if rule is not None and folds is None:
        names = add_split(path, rule, seed)
    elif folds is not None and rule is None:
        names = add_folds(path, folds, seed)
    else:
        raise UserError("data split: give --rule RULE or --folds K, one of them")
    manifest = Manifest.load(path)
    for name in names:
        print(data_print.split_line(manifest, name))
    print(f"use it with: --set data.split={names[0]}")


@app.command()
def doctor(
    source: Annotated[list[str], typer.Argument(help="Folders or archives of a download, or s3://.")],
    as_json: AsJson = False,
) -> None:
    """Say which data set and form a download is, and what is missing; exit code 1 when it cannot be prepared."""
    from dataclasses import asdict

    from rwkvctl.data.guess.doctor import examine

    found = examine(source)
    sound = any(not finding.problems for finding in found.findings)
    if as_json:
        print(json.dumps(asdict(found), indent=2))
    elif not found.findings:
        kinds = ", ".join(f"{n} {kind}" for kind, n in found.extensions.items()) or "no files"
        print(f"{source[0]}: no known data set ({kinds}); see rwkvctl data list for what is understood")
    for finding in [] if as_json else found.findings:
        print(f"{finding.dataset}, form {finding.form}: {finding.samples} samples")
        for warning in finding.warnings:
            print(f"  note     {warning}")
        for problem in finding.problems[:MOST_PROBLEMS]:
            print(f"  problem  {problem}")
        if len(finding.problems) > MOST_PROBLEMS:
            print(f"  problem  ... and {len(finding.problems) - MOST_PROBLEMS} more")
        if finding.masks:
            print(f"  masks    {finding.masks}")
        for example in finding.examples:
            print(f"  pair     {example}")
        if finding.question:
            print(f"  ask      {finding.question}")
        if not finding.problems or finding.options:
            sources = " ".join(f"--source {shlex.quote(str(path))}" for path in source)
            line = f"rwkvctl data prepare {finding.dataset} {sources} {finding.options}"
            print(f"  prepare  {line.rstrip()}")
    if not sound:
        raise typer.Exit(1)


@app.command("list")
def list_(
    name: Annotated[str | None, typer.Argument(help="Show this one: its classes and the layouts it may have.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of data sets [default: the data root]")] = None,
    as_json: AsJson = False,
) -> None:
    """List the data sets that can be prepared, and those that are."""
    from dataclasses import asdict

    from rwkvctl.data.convert import formats
    from rwkvctl.data.store.manifest import Manifest
    from rwkvctl.data.store.schema import FILE_NAME

    if name:
        dataset = formats.get(name).DATASET
        print(json.dumps(asdict(dataset), indent=2)) if as_json else data_print.print_dataset(dataset)
        return
    root = root or _data_root()
    found: dict[str, Any] = {}
    for path in sorted(root.glob(f"*/{FILE_NAME}")) if root.is_dir() else []:
        if not path.parent.name.startswith("."):
            try:
                found[str(path.parent)] = data_print.summary_of(Manifest.load(path.parent))
            except UserError as error:
                found[str(path.parent)] = {"error": str(error)}
    if as_json:
        table = {form.DATASET.name: asdict(form.DATASET) for form in formats.every()}
        print(json.dumps({"formats": table, "root": str(root), "datasets": found}, indent=2))
        return
    prepared = {summary.get("format") for summary in found.values()}
    data_print.print_table([form.DATASET for form in formats.every()], prepared)
    print(f"data sets in {root}" + ("" if found else ": none yet; make one with rwkvctl data prepare"))
    for path_text, summary in found.items():
        print(f"  {Path(path_text).name:20} " + (summary.get("error") or data_print.one_line(summary)))


@app.command("verify-synapse")
def verify_synapse(
    npz: Annotated[list[Path], typer.Option(help="Folder or archive with TransUNet's train_npz.")],
    raw: Annotated[list[Path], typer.Option(help="Folder or archive with the raw release's img and label.")],
) -> None:
    """Find out how preprocessed Synapse slices are turned against the raw release; exit code 1 without a match."""
    from rwkvctl.data.convert.synapse_check import compare

    found = compare(npz, raw)
    print(f"case{found.case:04d}, slice {found.z}, labels in the order of {found.order}")
    for match in found.matches:
        z = "reversed" if match.reversed_z else "as filed"
        name = f"  --orientation {match.orientation}" if match.orientation else ""
        same = "exact " if match.exact else "      "
        figures = f"image differs by {match.difference:.6f}, labels agree on {100 * match.labels_equal:.2f} %"
        print(f"  {same} rows, columns = {match.variant:7} slices {z}: {figures}{name}")
    if not found.matches or not found.matches[0].exact:
        raise typer.Exit(1)


@app.command()
def synth(
    name: Annotated[str, typer.Argument(metavar="NAME[:FORM]", help="Data set and form, see above.")],
    out: Annotated[Path, typer.Option(help="New folder.")],
    n: Annotated[int, typer.Option(help="About how many labelled images (patients or cases, for volumes).")] = 12,
    size: Annotated[int, typer.Option(help="Longer side in pixels.")] = 64,
    seed: Annotated[int, typer.Option(help="Another seed makes other images.")] = 0,
    trap: Annotated[list[str] | None, typer.Option(help="Something wrong with it, by name; may be repeated.")] = None,
) -> None:
    """Write a small synthetic copy of a data set's download, to try its path before access is granted.

    The forms, the usual one first: acdc:h5|nifti, busi:kaggle, clinicdb:tif|png|jpg, colondb:png|bmp, folder:pairs,
    fugc:zenodo, glas:bmp, goals:full|public, imagefolder:textures, imagetable:column|onehot,
    imagenet:tars|folder|kaggle|parquet|timm, isic2017:official,
    kvasir:jpg, nnunet:volumes|slices|slice_channels|channels|ct,
    pairs:suffix|annotators|instances|classes|parts|grey|colour|palette|ids|objects|jpegmasks|languages|endings|beside|beginnings|cases|junk|csv|metadata|volume_suffix|volume_folders|volume_cases|volume_organs|volume_annotators|volume_contrasts|volume_tiff,
    decathlon:task|channels, dicom:seg|labelmap|rtstruct, bids:lesions|contrasts,
    arrays:volumes|slices|npz|channels|onehot|parts, stacked:npy|npz|hdf5, stackedclasses:npz|npy, psvfm:png,
    synapse:transunet|samed|cascade|nifti.
    """
    from rwkvctl.data.convert import synth as trees

    with _writable("--out", out):
        trees.write(name, out, n=n, size=size, seed=seed, traps=trap or ())
    print(f"{out}: synthetic {name}; next: {trees.how_to_prepare(name, out)}")


@contextmanager
def _writable(option: str, path: Path) -> Iterator[None]:
    """One line for a path that cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be written ({error.strerror}); give another path") from error


def _data_root() -> Path:
    from rwkvctl.config import settings

    return Path(settings.load().data_root).expanduser()
