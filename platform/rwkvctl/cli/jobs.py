"""`rwkvctl pretrain | finetune | tune | evaluate | predict`: from options to a spec, from a spec to a submitted job."""

from __future__ import annotations

from typing import Annotated

import typer

Recipe = Annotated[str | None, typer.Argument(help="Recipe by name or YAML path (see: rwkvctl recipe list).")]
Variant = Annotated[str | None, typer.Option(help="Model size: xt, t, s or b.")]
Data = Annotated[
    str | None, typer.Option(help="Folder or URI of shards; by default the data set's place under the data root.")
]
Workers = Annotated[int | None, typer.Option(help="Training workers over all nodes.")]
Nodes = Annotated[
    str | None, typer.Option(metavar="N|MIN:MAX", help="Nodes to use; a range shrinks and grows with the cluster.")
]
GpusPerNode = Annotated[int | None, typer.Option(help="Workers on each node; by default one a GPU.")]
Address = Annotated[str | None, typer.Option(help="Ray cluster: host:port, or http://host:8265 for its job server.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Override a field of the recipe.")]
Name = Annotated[str | None, typer.Option(help="Name of the run.")]
Resume = Annotated[str | None, typer.Option(metavar="auto|RUN", help="Continue a run from its latest checkpoint.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved spec and what it means; start nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON; progress goes to standard error.")]
Render = Annotated[
    str | None, typer.Option(metavar="kuberay|slurm", help="Print the job for a cluster's scheduler; start nothing.")
]
Detach = Annotated[
    bool, typer.Option("--detach", help="Return when it is started; it goes on when this terminal is closed.")
]
Profile = Annotated[int | None, typer.Option(min=1, metavar="STEPS", help="Trace so many steps with torch's profiler.")]
Freeze = Annotated[
    int | None, typer.Option(min=0, metavar="EPOCHS", help="First epochs in which the encoder keeps its weights.")
]
Folds = Annotated[
    str | None,
    typer.Option(
        metavar="K|NAME", help="Cross-validate: a model for each of K folds, or of the splits NAME_fold0, ..."
    ),
]
Concurrency = Annotated[
    int | None, typer.Option(min=1, help="Folds at once; by default all that there are CPUs or GPUs for.")
]
Encoder = Annotated[str | None, typer.Option(help="Where the encoder starts: a run, models:/NAME@ALIAS, or a folder.")]


def pretrain(
    recipe: Recipe = None,
    variant: Variant = None,
    data: Data = None,
    encoder: Encoder = None,
    folds: Folds = None,
    concurrency: Concurrency = None,
    workers: Workers = None,
    nodes: Nodes = None,
    gpus_per_node: GpusPerNode = None,
    address: Address = None,
    assignments: Set = None,
    name: Name = None,
    resume: Resume = None,
    profile: Profile = None,
    dry_run: DryRun = False,
    render: Render = None,
    detach: Detach = False,
    as_json: Json = False,
) -> None:
    """Pretrain an encoder by classification."""
    from rwkvctl.cli import assemble, execute
    from rwkvctl.cli import folds as cross_validation
    from rwkvctl.cli import render as rendering

    options = assemble.training_options(
        variant=variant, name=name, workers=workers, nodes=nodes, gpus_per_node=gpus_per_node, address=address
    )
    if encoder is not None:
        options.setdefault("model", {})["encoder_weights"] = encoder
    if profile is not None:
        options.setdefault("train", {})["profile_steps"] = profile
    if render is not None:
        rendering.check_options(render, address=address, resume=resume, dry_run=dry_run, as_json=as_json)
        recipe = rendering.recipe_unseen("pretrain", recipe, data, assignments or [])
    if folds is not None:
        cross_validation.start(
            "pretrain", folds, recipe, data, options, assignments or [], concurrency=concurrency, resume=resume,
            dry_run=dry_run, as_json=as_json, detach=detach, render=render,
        )  # fmt: skip
        return
    cross_validation.refuse(concurrency)
    spec = assemble.training_spec("pretrain", recipe, data, options, assignments or [], resume)
    said = assemble.recipe_line("pretrain", recipe, data if render is None else rendering.readable(data), resume)
    execute.start(
        "pretrain", spec, resume=resume, dry_run=dry_run, as_json=as_json, detach=detach, first_line=said, render=render
    )


def finetune(
    recipe: Recipe = None,
    variant: Variant = None,
    data: Data = None,
    encoder: Encoder = None,
    freeze_encoder: Freeze = None,
    folds: Folds = None,
    concurrency: Concurrency = None,
    workers: Workers = None,
    nodes: Nodes = None,
    gpus_per_node: GpusPerNode = None,
    address: Address = None,
    assignments: Set = None,
    name: Name = None,
    resume: Resume = None,
    profile: Profile = None,
    dry_run: DryRun = False,
    render: Render = None,
    detach: Detach = False,
    as_json: Json = False,
) -> None:
    """Train a segmentation model, best from a pretrained encoder, and register it."""
    from rwkvctl.cli import assemble, execute
    from rwkvctl.cli import folds as cross_validation
    from rwkvctl.cli import render as rendering

    options = assemble.training_options(
        variant=variant, name=name, workers=workers, nodes=nodes, gpus_per_node=gpus_per_node, address=address
    )
    if encoder is not None:
        options.setdefault("model", {})["encoder_weights"] = encoder
    if freeze_encoder is not None:
        options["freeze_encoder"] = freeze_encoder
    if profile is not None:
        options.setdefault("train", {})["profile_steps"] = profile
    if render is not None:
        rendering.check_options(render, address=address, resume=resume, dry_run=dry_run, as_json=as_json)
        recipe = rendering.recipe_unseen("finetune", recipe, data, assignments or [])
    if folds is not None:
        cross_validation.start(
            "finetune", folds, recipe, data, options, assignments or [], concurrency=concurrency, resume=resume,
            dry_run=dry_run, as_json=as_json, detach=detach, render=render,
        )  # fmt: skip
        return
    cross_validation.refuse(concurrency)
    spec = assemble.training_spec("finetune", recipe, data, options, assignments or [], resume)
    said = assemble.recipe_line("finetune", recipe, data if render is None else rendering.readable(data), resume)
    execute.start(
        "finetune", spec, resume=resume, dry_run=dry_run, as_json=as_json, detach=detach, first_line=said, render=render
    )


def tune(
    space: Annotated[
        str | None, typer.Option(help="Sweep space by name or YAML path (see: rwkvctl recipe list).")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Recipe that is varied; by default the data's or the space's.")
    ] = None,
    variant: Variant = None,
    data: Data = None,
    encoder: Encoder = None,
    trials: Annotated[int | None, typer.Option(min=1, help="How many trials the study is to have.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Trials at once; by default all that fit.")] = None,
    objectives: Annotated[
        list[str] | None,
        typer.Option("--objective", metavar="METRIC[:max|min]", help="What is made better; several give a front."),
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help="How points are chosen: tpe, random, grid, gp, cmaes, nsga2 or nsga3.")
    ] = None,
    pruner: Annotated[
        str | None, typer.Option(help="How trials that fall behind are stopped: asha, median, hyperband or none.")
    ] = None,
    constraints: Annotated[
        list[str] | None,
        typer.Option("--constraint", metavar="FIGURE<=NUMBER", help="The most parameters or MACs, as parameters<=5e6."),
    ] = None,
    warm_start: Annotated[
        str | None, typer.Option(metavar="SWEEP", help="A sweep whose trials the sampler is to know of.")
    ] = None,
    gpus_per_trial: Annotated[
        float | None, typer.Option(help="Share of a GPU for each worker of a trial, as 0.5.")
    ] = None,
    study: Annotated[
        str | None, typer.Option(metavar="URL|FILE", help="Database of the Optuna study, or a journal file (.log).")
    ] = None,
    address: Address = None,
    assignments: Set = None,
    name: Name = None,
    resume: Resume = None,
    dry_run: DryRun = False,
    render: Render = None,
    detach: Detach = False,
    as_json: Json = False,
) -> None:
    """Sweep a space of model, loss or training choices: Optuna chooses the trials, Ray runs them."""
    from rwkvctl.cli import assemble, execute
    from rwkvctl.cli import render as rendering

    options = assemble.training_options(variant=variant, address=address)
    if encoder is not None:
        options.setdefault("model", {})["encoder_weights"] = encoder
    if render is not None:
        rendering.check_options(render, address=address, resume=resume, dry_run=dry_run, as_json=as_json)
        recipe = rendering.recipe_unseen("finetune", recipe, data, assignments or [])
    search = assemble.search_options(
        objectives=objectives,
        sampler=sampler,
        pruner=pruner,
        constraints=constraints,
        warm_start=warm_start,
        gpus_per_trial=gpus_per_trial,
    )
    spec = assemble.tune_spec(
        space, recipe, data, options, assignments or [], resume, trials, concurrency, study, name, search
    )
    execute.start("tune", spec, resume=resume, dry_run=dry_run, as_json=as_json, detach=detach, render=render)


def evaluate(
    model: Annotated[str, typer.Argument(metavar="RUN", help="A run, models:/NAME@ALIAS, or a folder with a model.")],
    part: Annotated[
        str | None,
        typer.Option(help="val or test; by default test, or val if there is none. Of folds, val is every case."),
    ] = None,
    data: Annotated[str | None, typer.Option(help="Folder or URI of shards; by default those of the training.")] = None,
    split: Annotated[str | None, typer.Option(help="Name of the split; by default that of the training.")] = None,
    split_rule: Annotated[str | None, typer.Option(hidden=True)] = None,
    nsd_tolerance: Annotated[
        list[str] | None,
        typer.Option(metavar="NUMBER[mm|px]", help="Tolerance of the surface Dice (NSD); by default 1mm, and 2px."),
    ] = None,
    lesions: Annotated[
        bool | None,
        typer.Option("--lesions/--no-lesions", help="Count single lesions; by default for data sets of lesions."),
    ] = None,
    workers: Workers = None,
    address: Address = None,
    assignments: Set = None,
    name: Name = None,
    render: Render = None,
    detach: Detach = False,
    as_json: Json = False,
) -> None:
    """Score a model per class and per case: DSC, HD95, IoU, surface distances and more."""
    from rwkvctl.cli import assemble, execute
    from rwkvctl.cli import render as rendering

    if render is not None:
        rendering.check_options(render, address=address, resume=None, dry_run=False, as_json=as_json)
    old_spelling = part is None and split in assemble.PARTS and split_rule is None
    part, split = assemble.part_and_split(part, split, split_rule)
    figures = assemble.figure_options(nsd_tolerance or [], lesions)
    spec = assemble.evaluate_spec(model, part, data, split, workers, address, name, assignments or [], figures)
    if old_spelling:
        assemble.refuse_two_meanings(spec)
    execute.start("evaluate", spec, resume=None, dry_run=False, as_json=as_json, detach=detach, render=render)


def predict(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL...", help="Runs, models:/NAME@ALIAS, folders or exported .onnx; several are an ensemble."
        ),
    ],
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...", help="Images, scans, arrays; folders, zips and trees of DICOM; patterns; s3://."
        ),
    ],
    out: Annotated[str, typer.Option(help="Folder that the masks are written into, or s3://.")],
    backend: Annotated[
        str, typer.Option(help="torch, or onnxruntime for exported files [default: by the model]", show_default=False)
    ] = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files in --out that have a mask's name; never an input.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a prediction into --out; whole masks are kept.")
    ] = False,
    range_: Annotated[
        str | None,
        typer.Option(
            "--range", metavar="LOW,HIGH", help="Black and white of 16-bit images, for a model of 8-bit ones."
        ),
    ] = None,
    tta: Annotated[str, typer.Option(help="Mean over views of each image: flips or rotations.")] = "none",
    tile: Annotated[
        bool, typer.Option("--tile", help="Slide a window of the training size over larger images; not resized.")
    ] = False,
    tile_overlap: Annotated[float, typer.Option(help="Share by which one window of --tile overlaps the next.")] = 0.5,
    thresholds: Annotated[
        list[str] | None,
        typer.Option("--threshold", metavar="CLASS=P", help="Least probability of a class. Repeatable."),
    ] = None,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Write them beside the masks (.npz).")] = False,
    largest_component: Annotated[
        bool, typer.Option("--largest-component", help="Of each class keep the largest connected part.")
    ] = False,
    fill_holes: Annotated[bool, typer.Option("--fill-holes", help="Fill holes inside a class.")] = False,
    preview: Annotated[
        bool, typer.Option("--preview", help="Draw each image with its mask, into the folder previews of --out.")
    ] = False,
    format_: Annotated[
        str, typer.Option("--format", help="Of DICOM series: dicom-seg, dicom-labelmap, or auto, which is NIfTI.")
    ] = "auto",
    keep_empty_frames: Annotated[
        bool, typer.Option("--keep-empty-frames", help="DICOM-SEG with frames that have nothing of their class.")
    ] = False,
    segment_codes: Annotated[
        str | None, typer.Option(metavar="FILE", help="DICOM codes and colours of classes (YAML or JSON).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a mask for every input, at the input's own size, and run.json with what is in them."""
    from rwkvctl.cli import assemble, execute

    options = {
        "backend": backend,
        "overwrite": overwrite,
        "resume": resume,
        "tta": tta,
        "tile": tile,
        "tile_overlap": tile_overlap,
        "probabilities": probabilities,
        "largest_component": largest_component,
        "fill_holes": fill_holes,
        "preview": preview,
        "format": format_,
        "keep_empty_frames": keep_empty_frames,
        "segment_codes": assemble.segment_codes(segment_codes),
    }
    execute.predict(assemble.predict_spec([model, *inputs], out, range_, thresholds or [], options), as_json=as_json)
