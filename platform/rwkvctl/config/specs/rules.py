"""What a version must do before an alias may point to it: a YAML file, kept with the project or on the tracking server.

# rwkvctl model promote rwkv_unet_acdc 3 --alias champion --rules promotion.yaml
gates: [dsc_strict>=0.85, hd95_mm_strict<=8]
not_worse:
  than: champion            # an alias; holds where it points to nothing yet
  metric: dsc_strict
  margin: 0.01
export: onnx
most: {parameters: 20.0e+6, megabytes: 100, latency_ms: 200}
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from rwkvctl.base.errors import UserError
from rwkvctl.base.names import alias_problem
from rwkvctl.config.specs.base import Spec, problems

Bound = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class NotWorse(Spec):
    """By a paired comparison over the test cases of both: the interval of the mean difference stays within `margin`."""

    than: str = "champion"
    """Alias of the version to compare with."""
    metric: str = "dsc_strict"
    """A column of `cases.csv`."""
    margin: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """By how much it may be worse on average, in the metric's unit: by no end of the 95 % interval more than this."""

    @model_validator(mode="after")
    def _alias(self) -> NotWorse:
        if problem := alias_problem(self.than):
            raise ValueError(problem)
        return self


class Most(Spec):
    """Upper bounds of what a version costs."""

    parameters: Bound | None = None
    macs: Bound | None = None
    """Of one image of the training size, in the paper's convention."""
    megabytes: Bound | None = None
    """Of its file of weights."""
    latency_ms: Bound | None = None
    """Median of one image of the training size, on the device of whoever promotes."""


class PromotionRules(Spec):
    """All have to hold. Scores are those of the model's own data and split, on cases it was not trained on."""

    gates: tuple[str, ...] = ()
    """Bounds of metrics of the test part, as `--gate` takes them."""
    not_worse: NotWorse | None = None
    export: Literal["onnx", "pt2"] | None = None
    """It can be exported so, and the export gives the same logits."""
    most: Most = Most()


def parse(text: str, where: str) -> PromotionRules:
    """UserError, which names `where`, for all that is wrong with the rules."""
    try:
        fields: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{where}: is not YAML ({' '.join(str(error).split())[:120]})") from None
    if not isinstance(fields, dict) or not fields:
        raise UserError(f"{where}: must be a mapping of rules ({', '.join(PromotionRules.model_fields)})")
    try:
        return PromotionRules.model_validate(fields)
    except ValidationError as error:
        raise UserError(f"{where}: {problems(error, PromotionRules)}") from None


def read(path: Path) -> tuple[PromotionRules, str]:
    """The rules of a file, and its text."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not text"
        raise UserError(f"--rules {path}: {reason}") from None
    return parse(text, f"--rules {path}"), text
