"""Back from what shards hold to the numbers of the source's files, by what a sample's json says of its channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvctl.data.images import normalise
from rwkvctl.data.images.normalise import AS_IT_IS, TO_UNIT, Rule


def known(meta: Mapping[str, Any]) -> list[Rule] | None:
    """The rule of each channel with the numbers that it came to; None where the json does not tell all of them."""
    rules = normalise.rules_of(meta.get("intensity")) or []
    return rules if rules and all(_is_settled(rule) for rule in rules) else None


def _is_settled(rule: Rule) -> bool:
    if rule.scale == TO_UNIT:
        return rule.clip is not None and all(type(bound) in (int, float) for bound in rule.clip)
    return rule.scale == AS_IT_IS or rule.mean is not None


def restored(image: NDArray[np.float32], rules: list[Rule], meta: Mapping[str, Any]) -> list[NDArray[np.float32]]:
    """Each channel of (..., C), or the only one of an image without that axis, in the file's numbers: whole ones where
    they were. What a rule clipped stays clipped."""
    channels = [image] if len(rules) == 1 else list(np.moveaxis(image, -1, 0))
    modes = str(meta.get("orig_mode")).split(", ")
    outside = np.logical_and.reduce([own == 0 for own in channels])  # of a rule that leaves zeros zero
    found = []
    for place, (own, rule) in enumerate(zip(channels, rules, strict=True)):
        values = _unscaled(own, rule)
        if rule.over == "nonzero":
            values[outside] = 0
        if (modes[place] if len(modes) > 1 else modes[0]).startswith(("int", "uint")):
            np.rint(values, out=values)
        found.append(values)
    return found


def _unscaled(values: NDArray[np.float32], rule: Rule) -> NDArray[np.float32]:
    if rule.scale == AS_IT_IS:
        return values.copy()
    if rule.scale == TO_UNIT:
        low, high = map(float, rule.clip or (0.0, 1.0))
        return values * np.float32(high - low) + np.float32(low)
    return values * np.float32(rule.deviation or 1.0) + np.float32(rule.mean or 0.0)
