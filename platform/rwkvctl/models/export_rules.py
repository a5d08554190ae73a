"""The rules of `data.images.normalise` in operators that torch.export and ONNX have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from rwkvctl.data.images.normalise import AS_IT_IS, LEAST_DEVIATION, TO_DEVIATIONS, Rule

GIVEN = (-math.inf, math.inf, 0.0, 1.0)
"""The numbers of a channel that is normalised already, see `normalise.Scaling`."""


def knows(rules: Sequence[Rule]) -> bool:
    """Whether an exported file can follow the rules by itself: filling holes takes a loop without an end."""
    return not any(rule.over == "nonzero" for rule in rules)


def own_numbers(image: Tensor, rules: Sequence[Rule]) -> Tensor:
    """float32 (C, 4) of a volume's channels (D, H, W, C): what is clipped to, what is taken off, what divides."""
    if not knows(rules):
        return torch.tensor([GIVEN] * len(rules))
    inside = around(image) if any(rule.over == "box" for rule in rules) else None
    return torch.stack([_of_channel(image[..., place], rule, inside) for place, rule in enumerate(rules)])


def _of_channel(values: Tensor, rule: Rule, inside: Tensor | None) -> Tensor:
    if rule.scale == AS_IT_IS:
        return torch.tensor(GIVEN)
    if rule.scale == TO_DEVIATIONS and rule.mean is not None:
        ends = [float(bound) for bound in rule.clip or GIVEN[:2]]
        return torch.tensor([*ends, rule.mean, max(float(rule.deviation or 0), LEAST_DEVIATION)])
    counted = inside if rule.over == "box" and inside is not None else torch.ones_like(values)
    if rule.scale == TO_DEVIATIONS:
        count = counted.sum()
        mean = (values * counted).sum() / count
        deviation = (((values - mean) ** 2 * counted).sum() / count).sqrt().clamp(min=LEAST_DEVIATION)
        return torch.cat([torch.tensor(GIVEN[:2]), torch.stack([mean, deviation])])
    assert rule.clip is not None
    if rule.over == "box":  # whose range is from the least to the greatest
        low = torch.where(counted > 0, values, math.inf).min()
        high = torch.where(counted > 0, values, -math.inf).max()
    else:
        low, high = (bound_of(values, bound) for bound in rule.clip)
    return torch.stack([low, high, low, high - low])


def around(image: Tensor) -> Tensor:
    """float32 (D, H, W): 1 in the smallest box with all that is not zero in some channel, or everywhere."""
    there = (image != 0).any(dim=-1)
    there = there | ~there.any()
    kept = torch.ones_like(there, dtype=torch.float32)
    for axis in range(3):
        others = [other for other in range(3) if other != axis]
        line = there.any(dim=others[1]).any(dim=others[0])
        place = torch.arange(line.shape[0])
        first = torch.where(line, place, line.shape[0]).min()
        last = torch.where(line, place, -1).max()
        within = ((place >= first) & (place <= last)).float()
        kept = kept * within.reshape([-1 if other == axis else 1 for other in range(3)])
    return kept


def bound_of(image: Tensor, bound: Any) -> Tensor:
    """As `data.images.intensity` has it: a number, the least value, or the least that is not exceeded by so many
    hundredths of all."""
    if bound == "min":
        return image.min()
    if not isinstance(bound, str):
        return torch.tensor(float(bound))
    share, values = Fraction(bound.removeprefix("p")) / 100, image.flatten()
    rank = (values.shape[0] * share.numerator + share.denominator - 1) // share.denominator  # of the value, from 1 on
    if share == 0:
        return image.min()
    if share > Fraction(1, 2):
        return torch.topk(values, values.shape[0] - rank + 1).values[-1]
    return torch.topk(values, rank, largest=False).values[-1]
