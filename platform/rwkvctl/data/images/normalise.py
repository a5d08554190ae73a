"""From a scanner's values to those that a network sees, by one rule a channel: a range, or one of nnU-Net's schemes.

A manifest and a model keep the rule of one channel as it is, and those of several as `{"channels": [rule, ...]}`:

    {"clip": ["p0.5", "p99.5"], "scale": "(x - low) / (high - low)"}                a range, see `intensity`
    {"clip": [-950, 310], "mean": 20.1, "deviation": 95.7, "scale": "(x - mean) / deviation"}       of the data set (CT)
    {"over": "box", "scale": "(x - mean) / deviation"}                              of each volume
    {"scale": "x"}                                                                  as they are

`over` is where a volume's own statistics are taken: everywhere without it; "box", the smallest box with everything that
is not zero in some channel; "nonzero", what is not zero in some channel, its holes filled, where all else becomes 0.
Both are nnU-Net's (Isensee et al., Nature Methods 2021).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rwkvctl.data.images import intensity
from rwkvctl.data.images.intensity import Bound

TO_UNIT, TO_DEVIATIONS, AS_IT_IS = "(x - low) / (high - low)", "(x - mean) / deviation", "x"
LEAST_DEVIATION = 1e-8
"""nnU-Net's; what is smaller counts as this."""

Over = Literal["all", "box", "nonzero"]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Rule:
    """How one channel is normalised. mean, deviation: of the whole data set; None takes those of each volume."""

    scale: str = TO_UNIT
    clip: tuple[Bound, Bound] | None = None
    mean: float | None = None
    deviation: float | None = None
    over: Over = "all"

    @property
    def is_range(self) -> bool:
        """Whether it gives values in [0, 1], by a range alone."""
        return self.scale == TO_UNIT and self.over == "all"

    @property
    def is_fixed(self) -> bool:
        """Whether it needs nothing of the volume."""
        if self.scale == TO_DEVIATIONS:
            return self.mean is not None
        return self.scale == AS_IT_IS or not any(isinstance(bound, str) for bound in self.clip or ())

    def as_fields(self) -> dict[str, Any]:
        """As it is written into a manifest."""
        found: dict[str, Any] = {} if self.clip is None else {"clip": list(self.clip)}
        if self.mean is not None:
            found |= {"mean": self.mean, "deviation": self.deviation}
        if self.over != "all":
            found["over"] = self.over
        return found | {"scale": self.scale}


def rule_of(fields: Mapping[str, Any]) -> Rule:
    """The rule that a manifest or a model has for one channel."""
    low_high = fields.get("clip")
    clip = None if low_high is None else (low_high[0], low_high[1])
    return Rule(fields["scale"], clip, fields.get("mean"), fields.get("deviation"), fields.get("over", "all"))


def rules_of(fields: Mapping[str, Any] | None) -> list[Rule] | None:
    """One rule a channel from a manifest's or model's `intensity`; None where there is none."""
    if fields is None:
        return None
    return [rule_of(own) for own in fields["channels"]] if "channels" in fields else [rule_of(fields)]


def as_fields(rules: Sequence[Rule]) -> dict[str, Any]:
    """`intensity` of a manifest."""
    return rules[0].as_fields() if len(rules) == 1 else {"channels": [rule.as_fields() for rule in rules]}


def only_range(fields: Mapping[str, Any] | None) -> tuple[Bound, Bound] | None:
    """The bounds of the only channel's range; None where there is no rule, or it is another."""
    rules = rules_of(fields)
    return rules[0].clip if rules and len(rules) == 1 and rules[0].is_range else None


class Scaling(NamedTuple):
    """What a rule comes to for one volume: (clip(x, low, high) - shift) / divisor; 0 where `inside` is False."""

    low: float
    high: float
    shift: float
    divisor: float
    inside: Mask | None = None

    def of(self, values: NDArray[Any], which: Any = ...) -> NDArray[np.float32]:
        """Normalise the part `which` of the volume; ValueError for what is not finite."""
        found = values.astype(np.float32)
        if not np.isfinite(found).all():
            raise ValueError("has voxels that are not finite numbers")
        if np.isfinite(self.low) or np.isfinite(self.high):
            np.clip(found, np.float32(self.low), np.float32(self.high), out=found)
        found -= np.float32(self.shift)
        found /= np.float32(self.divisor)
        if self.inside is not None:
            found[~self.inside[which]] = 0
        return found

    def as_fields(self, rule: Rule) -> dict[str, Any]:
        """What a sample's json says of how it was normalised: the rule with the volume's own numbers."""
        if rule.scale == AS_IT_IS:
            return rule.as_fields()
        if rule.scale == TO_UNIT:
            return intensity.rule(self.low, self.high)
        return {**rule.as_fields(), "mean": self.shift, "deviation": self.divisor}


AS_GIVEN = Scaling(-np.inf, np.inf, 0.0, 1.0)
"""Leaves values as they are."""


def settled(rules: Sequence[Rule], channels: Sequence[NDArray[Any]]) -> list[Scaling]:
    """What the rules come to for the channels of one volume, arrays of one shape in the scanner's numbers.

    ValueError for a channel that is not finite, or has no contrast.
    """
    inside = nonzero(channels) if any(rule.over != "all" for rule in rules) else None
    around = None if inside is None else box(inside)
    return [_settled(rule, values, inside, around) for rule, values in zip(rules, channels, strict=True)]


def _settled(rule: Rule, values: NDArray[Any], inside: Mask | None, around: tuple[slice, ...] | None) -> Scaling:
    if rule.scale == AS_IT_IS:
        return AS_GIVEN
    if rule.mean is not None:
        low, high = map(float, rule.clip or (-np.inf, np.inf))
        return Scaling(low, high, rule.mean, max(float(rule.deviation or 0), LEAST_DEVIATION))
    if rule.over == "nonzero" and inside is not None:
        values = values[inside]
    elif rule.over == "box" and around is not None:
        values = values[around]
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError("has voxels that are not finite numbers")
    if not values.size or values.min() == values.max():
        raise ValueError(f"has no contrast (all voxels {values.flat[0] if values.size else 0:g})")
    if rule.scale == TO_UNIT:
        low, high = intensity.window(values, *(rule.clip or ("min", "p100")))
        if np.float32(low) >= np.float32(high):
            raise ValueError(f"has no contrast (all voxels {low:g})")
        return Scaling(low, high, low, float(np.float32(high) - np.float32(low)))
    mean, deviation = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    own = Scaling(-np.inf, np.inf, mean, max(deviation, LEAST_DEVIATION))
    return own._replace(inside=inside) if rule.over == "nonzero" else own


def stacked(channels: Sequence[NDArray[Any]], rules: Sequence[Rule]) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """A case's channels as a shard holds them, and the `intensity` of its samples' json.

    channels: one array a channel, all (D, H, W) or all (H, W), on one grid, in the scanner's numbers; rules: one each,
    for example from `nnunet_rules`. A 4-D file is its list of volumes.

    Returns float32 (D, H, W, C) or (H, W, C), the channels last as in photographs, so that a slice is one piece of the
    disk; of a single channel without that axis. ValueError for a channel that is not finite or has no contrast.
    """
    scalings = settled(rules, channels)
    found = [scaling.of(values) for scaling, values in zip(scalings, channels, strict=True)]
    own = [scaling.as_fields(rule) for scaling, rule in zip(scalings, rules, strict=True)]
    if len(found) == 1:
        return found[0], own[0]
    return np.stack(found, axis=-1), {"channels": own}


def nonzero(channels: Sequence[NDArray[Any]]) -> Mask:
    """What is not zero in some channel, its holes filled."""
    from scipy.ndimage import binary_fill_holes

    return np.asarray(binary_fill_holes(np.logical_or.reduce([values != 0 for values in channels])))


def box(inside: Mask) -> tuple[slice, ...]:
    """The smallest box around a mask; the whole of an empty one."""
    if not inside.any():
        return tuple(slice(0, size) for size in inside.shape)
    found = []
    for axis in range(inside.ndim):
        line = np.flatnonzero(inside.any(axis=tuple(other for other in range(inside.ndim) if other != axis)))
        found.append(slice(int(line[0]), int(line[-1]) + 1))
    return tuple(found)


class NormalSlices:
    """The slices of a volume (D, H, W[, C]) as its rules make them, each when it is asked for.

    channels: (D, H, W) each, as they are stored; rescaled: from numbers as they are stored to the scanner's, one each.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, channels: Sequence[NDArray[Any]], scalings: Sequence[Scaling], rescaled: Sequence[Any]):
        self.channels, self.scalings, self.rescaled = channels, scalings, rescaled
        self.shape = (*channels[0].shape, *([len(channels)] if len(channels) > 1 else []))
        self.ndim = len(self.shape)

    @property
    def nbytes(self) -> int:
        """Of what is held."""
        return sum(values.nbytes for values in self.channels)

    def __len__(self) -> int:
        return len(self.channels[0])

    def __getitem__(self, which: Any) -> NDArray[np.float32]:
        each = zip(self.channels, self.scalings, self.rescaled, strict=True)
        found = [scaling.of(rescaled(values[which]), which) for values, scaling, rescaled in each]
        return found[0] if len(found) == 1 else np.stack(found, axis=-1)


# nnU-Net's schemes ----------------------------------------------------------------------------------------------------

CT = "ct"
RANGES: Mapping[str, tuple[Bound, Bound]] = {"rescale_to_0_1": ("min", "p100"), "rgb_to_0_1": (0, 255)}


def nnunet_rule(name: str, *, over: Over = "box") -> Rule:
    """The rule that nnU-Net takes by a channel's name; of CT, whose numbers are the data set's, still without them.

    over: where a channel's own mean and deviation are taken.
    """
    scheme = name.casefold()
    if scheme == "nonorm":
        return Rule(AS_IT_IS)
    if scheme in RANGES:
        return Rule(TO_UNIT, RANGES[scheme], over="box" if scheme == "rescale_to_0_1" else "all")
    return Rule(TO_DEVIATIONS) if scheme == CT else Rule(TO_DEVIATIONS, over=over)
