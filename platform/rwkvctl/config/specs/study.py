"""A study: a table of models to be trained alike and compared, with the figures that a paper prints for them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, ValidationError

from rwkvctl.base.errors import UserError
from rwkvctl.config.specs.base import Spec, problems
from rwkvctl.config.specs.jobs import FinetuneSpec
from rwkvctl.config.specs.load import build, job_folder, merge, nest, read_recipe, read_yaml, shipped_or_path
from rwkvctl.config.specs.parts import Positive


class PaperFigures(Spec):
    """What the paper prints of a row; parameters in M, MACs in G, DSC in % and HD95 by data set."""

    parameters: float | None = None
    macs: float | None = None
    dsc: dict[str, float] = Field(default_factory=dict)
    hd95: dict[str, float] = Field(default_factory=dict)


class RowSpec(Spec):
    """A row. Without `set` it is a model that is only cited."""

    label: str
    set: dict[str, Any] | None = None
    """Paths of the fine-tuning spec and their values, as after `--set`."""
    paper: PaperFigures = PaperFigures()


class StudySpec(Spec):
    """A table of a paper."""

    title: str
    datasets: Annotated[list[str], Field(min_length=1)]
    """Each is trained with the recipe of its name."""
    num_classes: Positive
    """Output channels of the networks whose parameters and MACs are printed."""
    image_size: Positive
    set: dict[str, Any] = Field(default_factory=dict)
    """What all rows have in common beside the recipe."""
    rows: Annotated[list[RowSpec], Field(min_length=1)]


def study_names() -> list[str]:
    """The studies that are shipped."""
    return sorted(file.stem for file in (job_folder() / "studies").glob("*.yaml"))


def read_study(name: str) -> StudySpec:
    """A study by its name or path; UserError for an unknown name, and for a row that is no valid spec."""
    path = shipped_or_path("studies", name, study_names())
    try:
        study = StudySpec.model_validate(read_yaml(path))
    except ValidationError as error:
        raise UserError(f"study {path.name}: {problems(error, StudySpec)}") from None
    for row in study.rows:
        if row.set is not None:
            row_spec(study, row, study.datasets[0])
    return study


def row_spec(study: StudySpec, row: RowSpec, dataset: str) -> FinetuneSpec:
    """The fine-tuning spec that trains a row on a data set."""
    fields = read_recipe(dataset)
    for path, value in assignments(study, row).items():
        fields = merge(fields, nest(path, value))
    return build(FinetuneSpec, fields, f"row {row.label!r}")


def assignments(study: StudySpec, row: RowSpec) -> dict[str, Any]:
    """What a row's command says after `--set`."""
    return {"data.image_size": study.image_size, **study.set, **(row.set or {})}
