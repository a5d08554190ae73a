"""From command-line options, recipe and settings to one resolved spec."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from rwkvctl.base.errors import UserError
from rwkvctl.base.paths import as_text
from rwkvctl.config import settings
from rwkvctl.config.specs import load
from rwkvctl.config.specs.jobs import (
    JOBS,
    EvaluateSpec,
    FinetuneSpec,
    JobSpec,
    PredictSpec,
    TrainingSpec,
    TuneSpec,
)
from rwkvctl.config.specs.objectives import parse_bound, parse_objective
from rwkvctl.config.specs.parts import VOLUMETRIC, takes_volumes
from rwkvctl.config.specs.space import SpaceSpec
from rwkvctl.launch.complete_spec import on_machine, with_data
from rwkvctl.runs import folder as run_folder

MODELS = {"pretrain": "rwkv_unet_enc", "finetune": "rwkv_unet"}


def training_options(variant: str | None = None, name: str | None = None, **cluster: Any) -> dict[str, Any]:
    """The options that were given, as fields of a spec. The model's name waits for the job kind."""
    fields: dict[str, Any] = {"cluster": {key: value for key, value in cluster.items() if value is not None}}
    if variant is not None:
        if variant not in ("xt", "t", "s", "b"):
            raise UserError(f"--variant {variant!r}: must be xt, t, s or b")
        fields["variant"] = variant
    if name is not None:
        fields["name"] = name
    return fields


def training_spec(
    job: str, recipe: str | None, data: str | None, options: dict[str, Any], assignments: list[str], resume: str | None
) -> TrainingSpec:
    """The spec of a training job: a recipe's, or that of the run that `--resume RUN` names, with the options on it.

    UserError for an option that a run cannot be continued with, since it would change what is computed.
    """
    machine = settings.load()
    given = option_fields(data, options, assignments)
    if resume not in (None, "auto"):
        folder = run_folder.find(resume, given.get("storage") or machine.storage)
        kept = run_of(folder, job)
        start = load.read_recipe(recipe) if recipe is not None else kept.model_dump(mode="json", by_alias=True)
        spec = training_from(job, with_variant(job, start, options), given, f"run {folder.name}", machine)
        run_folder.refuse_changes(folder, spec)
        return spec
    recipe = recipe or pick_recipe(job, data)[0]
    fields = load.read_recipe(recipe)
    if fields.get("job") != job:
        raise UserError(f"recipe {recipe}: is for {fields.get('job')}, not {job}")
    return training_from(job, with_variant(job, fields, options), given, f"recipe {recipe}", machine)


def with_variant(job: str, fields: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """The fields of a recipe or run with RWKV-UNet in the size of `--variant`, over as many axes as there."""
    if "variant" not in options:
        return fields
    model = fields.get("model")
    stem = VOLUMETRIC if takes_volumes(model) else f"{MODELS[job]}_"
    return load.merge(fields, {"model": {"name": f"{stem}{options['variant']}"}})


def option_fields(data: str | None, options: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """What was given beside the recipe, as fields of the spec; without the variant."""
    given = {key: value for key, value in options.items() if key != "variant"}
    given = load.merge(given, load.parse_assignments(assignments))
    return given if data is None else load.merge(given, {"data": {"path": data}})


def training_from(
    job: str, fields: dict[str, Any], given: dict[str, Any], where: str, machine: settings.Settings
) -> TrainingSpec:
    """The resolved spec of these fields with what was given on top."""
    spec = load.build(JOBS[job], load.merge(fields, given), where)
    assert isinstance(spec, TrainingSpec)
    return on_machine(with_data(spec, machine), machine)


def run_of(folder: Path, job: str) -> JobSpec:
    """The spec of a run of this kind of job; UserError for another kind."""
    spec = run_folder.read_spec(folder)
    if spec.job != job:
        raise UserError(f"run {folder.name}: is a {spec.job} run, not {job}")
    return spec


def recipe_line(job: str, recipe: str | None, data: str | None, resume: str | None) -> str | None:
    """Which recipe a new job follows, and why: the first line that it prints. None where a run is continued, and where
    the recipe that was named is the data's own."""
    if resume not in (None, "auto"):
        return None
    if recipe is None:
        name, why = pick_recipe(job, data)
        return f"recipe {name}: {why}"
    try:
        form = None if data is None else prepared_from(data)
    except UserError:  # said with more help when the job is checked
        return None
    if form == recipe or form not in load.recipe_names(job):
        return None
    return f"recipe {recipe}: as you said; {data} was prepared from {form}, whose own is {form}"


def pick_recipe(job: str, data: str | None) -> tuple[str, str]:
    """The recipe for a data set when none is named, and why: that of what was prepared, or the one for its kind."""
    if data is None:
        if job == "pretrain":
            return "imagenet", "the default for pretraining"
        raise UserError("recipe: say which, for example: rwkvctl finetune clinicdb (see: rwkvctl recipe list)")
    from rwkvctl.data.store.manifest import Manifest

    form = prepared_from(data)
    if form in load.recipe_names(job):
        return form, f"{data} was prepared from {form}"
    why = f"{data} was prepared from {form}, which has no recipe of its own"
    if job == "pretrain":
        return "imagefolder", why
    classes = len(Manifest.load(data).classes)
    return "binary" if classes == 2 else "multiclass", f"{why}, with {classes} classes"


def prepared_from(data: str) -> str:
    """The form of the download that a data set was prepared from."""
    from rwkvctl.data.store.manifest import Manifest

    return Manifest.load(data).content.source.format


def tune_spec(
    space: str | None,
    recipe: str | None,
    data: str | None,
    options: dict[str, Any],
    assignments: list[str],
    resume: str | None,
    trials: int | None,
    concurrency: int | None,
    study: str | None,
    name: str | None,
    search: dict[str, Any] | None = None,
) -> TuneSpec:
    """A sweep over a space, around the recipe of the data or of the space; `search` is how it is searched."""
    study, search = study_place(study), search or {}
    if resume not in (None, "auto"):
        return continued_sweep(
            resume, space, recipe, data, options, assignments, trials, concurrency, study, name, search
        )
    if space is None:
        raise UserError("--space: say which (see: rwkvctl recipe list)")
    found = load.read_space(space)
    if recipe is None:
        recipe = found.recipe if data is None else recipe_for_space(found, data)
    base = training_spec("finetune", recipe, data, options, assignments, resume)
    assert isinstance(base, FinetuneSpec)
    fields = {
        "name": name,
        "seed": base.seed,
        "storage": base.storage,
        "cluster": base.cluster.model_dump(),
        "tracking": base.tracking.model_dump(),
        "space_name": Path(space).stem,
        "space": found.model_dump(mode="json"),
        "base": base.model_dump(mode="json", by_alias=True),
        "trials": trials or found.trials,
        "concurrency": concurrency,
        "study_storage": study,
    }
    return load.build(TuneSpec, fields | search, f"space {space}")


def recipe_for_space(space: SpaceSpec, data: str) -> str:
    """The recipe that a sweep begins with where none is named: the data's own, but for a space of networks over three
    axes, which that knows nothing of."""
    if takes_volumes(load.read_recipe(space.recipe).get("model")):
        return space.recipe
    return pick_recipe("finetune", data)[0]


def search_options(
    *,
    objectives: list[str] | None,
    sampler: str | None,
    pruner: str | None,
    constraints: list[str] | None,
    warm_start: str | None,
    gpus_per_trial: float | None,
) -> dict[str, Any]:
    """The fields of a sweep that these options set."""
    fields = {
        "objectives": [parse_objective(text).model_dump() for text in objectives] if objectives else None,
        "sampler": sampler,
        "pruner": pruner,
        "constraints": [parse_bound(text).model_dump() for text in constraints] if constraints else None,
        "warm_start": None if warm_start is None else sweep_folder(warm_start),
        "gpus_per_trial": gpus_per_trial,
    }
    return {name: value for name, value in fields.items() if value is not None}


def sweep_folder(reference: str) -> str:
    """The folder of a sweep whose trials another is to know of."""
    folder = run_folder.find(reference, settings.load().storage)
    if (job := run_folder.read_spec(folder).job) != "tune":
        raise UserError(f"--warm-start {reference}: is a {job} run, not a sweep")
    return str(folder)


def study_place(study: str | None) -> str | None:
    """A database as it is given; a journal file as an absolute path."""
    if study is None or "://" in study:
        return study
    if not study.endswith((".log", ".journal")):
        raise UserError(f"--study {study}: must be the URL of a database, or a journal file, as sweep.log")
    return settings.absolute(study)


def continued_sweep(
    run: str,
    space: str | None,
    recipe: str | None,
    data: str | None,
    options: dict[str, Any],
    assignments: list[str],
    trials: int | None,
    concurrency: int | None,
    study: str | None,
    name: str | None,
    search: dict[str, Any],
) -> TuneSpec:
    """The spec of a sweep that is continued, with more trials if they are asked for; UserError for other changes."""
    machine = settings.load()
    folder = run_folder.find(run, machine.storage)
    kept = run_of(folder, "tune")
    assert isinstance(kept, TuneSpec)
    given = option_fields(data, options, assignments)
    start = load.read_recipe(recipe) if recipe is not None else kept.base.model_dump(mode="json", by_alias=True)
    start = with_variant("finetune", start, options)
    base = training_from("finetune", start, given, f"run {folder.name}", machine)
    assert isinstance(base, FinetuneSpec)
    found = kept.space if space is None else load.read_space(space)
    changes = {
        "name": name or kept.name,
        "seed": base.seed,
        "base": base,
        "space": found,
        "cluster": base.cluster,
        "trials": trials or kept.trials,
        "concurrency": concurrency or kept.concurrency,
        "study_storage": study or kept.study_storage,
    }
    fields = kept.model_copy(update=changes).model_dump(mode="json", by_alias=True) | search
    spec = load.build(TuneSpec, fields, f"run {folder.name}")  # `model_copy` checks nothing
    run_folder.refuse_changes(folder, spec)
    return spec


PARTS = ("val", "test")


def part_and_split(part: str | None, split: str | None, split_rule: str | None) -> tuple[str | None, str | None]:
    """Which part of which split; None leaves it to the data. `--split test` and `--split-rule NAME` are how this was
    said before."""
    if split_rule is not None:
        if part is not None or split not in (None, *PARTS):
            raise UserError("--split-rule is now called --split: give only one of them, and --part val or test")
        part, split = split or "test", split_rule
    elif split in PARTS and part is None:
        part, split = split, None
    else:
        return part, split
    print(f"note: this is now written --part {part}" + (f" --split {split}" if split else ""), file=sys.stderr)
    return part, split


def refuse_two_meanings(spec: EvaluateSpec) -> None:
    """`--split test` where the data has a split of that very name."""
    from rwkvctl.data.store.manifest import Manifest
    from rwkvctl.models import bundle
    from rwkvctl.registry import references

    data = spec.data or bundle.read_info(references.model_folder(spec.model, spec)).extra.get("data")
    if data is not None and spec.part in Manifest.load(data).splits:
        raise UserError(
            f"--split {spec.part}: data {data} has a split of this name, and it was also the option for the part; "
            f"say --part {spec.part}, or --part and --split"
        )


def figure_options(tolerances: list[str], lesions: bool | None) -> dict[str, Any]:
    """The fields of an evaluation that say how figures are computed: `["1.5mm", "3px"]`; a bare number is in mm."""
    found: dict[str, Any] = {} if lesions is None else {"lesions": lesions}
    for text in tolerances:
        parts = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(mm|px|vox)?", text.strip())
        if parts is None:
            raise UserError(f"--nsd-tolerance {text}: must be a distance as 1.5mm, or 3px for pixels and voxels")
        field = "nsd_tolerance_mm" if parts[2] in (None, "mm") else "nsd_tolerance_vox"
        if field in found:
            raise UserError(
                f"--nsd-tolerance {text}: there is one in {field[-3:].strip('_')} already; give one of each"
            )
        found[field] = float(parts[1])
    return found


def evaluate_spec(
    model: str,
    part: str | None,
    data: str | None,
    split: str | None,
    workers: int | None,
    address: str | None,
    name: str | None,
    assignments: list[str],
    figures: dict[str, Any] | None = None,
) -> EvaluateSpec:
    """Which model on which part of which data; one worker runs in the job's own process."""
    cluster: dict[str, Any] = {"workers": workers, "address": address}
    if (workers or 1) == 1 and address is None:
        cluster["launcher"] = "process"
    fields = {
        "name": name,
        "model": absolute_model(model),
        "part": part,
        "data": None if data is None else settings.absolute(data),
        "split": split,
        "cluster": cluster,
        **(figures or {}),
    }
    fields = load.merge(fields, load.parse_assignments(assignments))
    spec = load.build(EvaluateSpec, fields, "evaluate")
    return on_machine(spec, settings.load())


def predict_spec(
    words: list[str], out: str, window: str | None, thresholds: list[str], options: dict[str, Any]
) -> PredictSpec:
    """Which models, which files, where to. `words` are the models and then the inputs."""
    from rwkvctl.data.images.deep import parse_range
    from rwkvctl.models import onnx_model

    models, inputs = models_and_inputs(words)
    fields = {
        "model": absolute_model(models[0]),
        "ensemble": [absolute_model(model) for model in models[1:]],
        "inputs": [as_text(settings.absolute(path)) for path in inputs],
        "out": as_text(settings.absolute(out)),
        "range": None if window is None else parse_range(window),
        "thresholds": dict(threshold(text) for text in thresholds),
        "cluster": {"launcher": "process"},
        **options,
    }
    spec = load.build(PredictSpec, fields, "predict")
    onnx_model.backend(models, spec.backend)
    return on_machine(spec, settings.load())


MODEL_FILES = ("model.json", "model/model.json")
"""In a folder that is a model, or a run that has one."""


def models_and_inputs(words: list[str]) -> tuple[list[str], list[str]]:
    """The first is a model; so are those that follow it and are a `models:/` URI, a folder with a model, an exported
    file, or the name of a run that is no path. The rest are inputs."""
    from rwkvctl.models import onnx_model
    from rwkvctl.runs import folder as run_folder

    def is_model(word: str) -> bool:
        if (
            word.startswith("models:/")
            or onnx_model.is_file(word)
            or any((Path(word) / place).is_file() for place in MODEL_FILES)
        ):
            return True
        named = None if Path(word).exists() else run_folder.named(word, settings.load().storage)
        return named is not None and (named / run_folder.SPEC).is_file()

    count = next((place for place, word in enumerate(words) if place and not is_model(word)), len(words))
    if count == len(words):
        raise UserError(
            f"predict: no input among {', '.join(words[:3])}: give images, scans or folders after the model"
        )
    return words[:count], words[count:]


def segment_codes(file: str | None) -> dict[str, Any]:
    """The option `--segment-codes FILE`."""
    from rwkvctl.config.specs.segments import read_codes

    return {} if file is None else dict(read_codes(Path(file).expanduser()))


def threshold(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    try:
        return name, float(value)
    except ValueError:
        raise UserError(f"--threshold {text}: write CLASS=PROBABILITY, for example polyp=0.3") from None


def absolute_model(reference: str) -> str:
    """A model folder or an exported file as an absolute path; names of runs and URIs as they are."""
    from rwkvctl.models import onnx_model

    is_path = (Path(reference) / "model.json").is_file() or (
        onnx_model.is_file(reference) and Path(reference).is_file()
    )
    return settings.absolute(reference) if is_path else reference
