"""How sure a model is of the mask of a case: what Dice it would have if its probabilities were true.

The Dice of a mask with an unknown truth, whose pixels are of the class with probability p, is about
2 sum(p over the mask) / (size of the mask + sum(p over all pixels)): a quotient of expectations. It is as good as the
probabilities are, so they should be calibrated. What is wrong with confidence it cannot see.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BORDER = 5
"""Pixels: the border of the foreground is what has both foreground and background within a square of this side."""


class Sureness(NamedTuple):
    """Of one case."""

    predicted_dsc: list[float | None]
    """By class id from 1 on; None for a class that is not in the mask."""
    entropy: float | None
    """The mean over the predicted foreground, in nats; None where there is none."""
    border_entropy: float | None

    @property
    def mean_dsc(self) -> float:
        """Over the classes that are in the mask; 0 for an empty one, which a person should look at."""
        known = [value for value in self.predicted_dsc if value is not None]
        return sum(known) / len(known) if known else 0.0


@dataclass
class Certainty:
    """Sums over the slices of a case."""

    sums: Tensor | None = None
    """float64 (3, classes): size of the mask, probability within it, probability over all pixels."""
    entropies: Tensor = field(default_factory=lambda: torch.zeros(4, dtype=torch.float64))
    """Entropy over the predicted foreground and its pixels; the same of its border."""

    def see(self, probabilities: Tensor, mask: Tensor) -> None:
        """probabilities: float (B, classes, H, W); mask: uint8 (B, H, W), on the same device."""
        classes = probabilities.shape[1]
        inside = F.one_hot(mask.long(), classes).movedim(-1, 1).bool()
        own = probabilities.where(inside, torch.zeros_like(probabilities))
        sums = torch.stack([each.sum(dim=(0, 2, 3), dtype=torch.float64) for each in (inside, own, probabilities)])
        self.sums = sums.cpu() if self.sums is None else self.sums + sums.cpu()
        foreground = (mask > 0).float()[:, None]
        spread = F.max_pool2d(foreground, BORDER, 1, BORDER // 2)
        kept = -F.max_pool2d(-foreground, BORDER, 1, BORDER // 2)
        entropy = torch.special.entr(probabilities).sum(dim=1)
        border = ((spread > 0) & (kept < 1))[:, 0]
        found = [(entropy * where).sum(dtype=torch.float64) for where in (foreground[:, 0], border)]
        counts = [where.sum(dtype=torch.float64) for where in (foreground, border)]
        self.entropies += torch.stack([found[0], counts[0], found[1], counts[1]]).cpu()

    def result(self) -> Sureness:
        assert self.sums is not None, "no slice was seen"
        size, own, every = self.sums.tolist()
        predicted = [2 * own[c] / (size[c] + every[c]) if size[c] else None for c in range(1, len(size))]
        inside, pixels, at_border, of_border = self.entropies.tolist()
        return Sureness(predicted, inside / pixels if pixels else None, at_border / of_border if of_border else None)


def ranks(cases: Mapping[str, Sureness]) -> dict[str, int]:
    """1 for the case with the lowest predicted DSC: the one to look at first."""
    return {key: place for place, key in enumerate(sorted(cases, key=lambda key: (cases[key].mean_dsc, key)), start=1)}


def probabilities_of(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """(B, classes, H, W); one logit is that of the foreground."""
    logits = logits / temperature
    if logits.shape[1] == 1:
        foreground = torch.sigmoid(logits)
        return torch.cat([1 - foreground, foreground], dim=1)
    return torch.softmax(logits, dim=1)


def spearman(first: list[float], second: list[float]) -> float | None:
    """Rank correlation; None for fewer than three pairs, or where one side has a single value."""
    if len(first) < 3 or len(set(first)) < 2 or len(set(second)) < 2:
        return None
    from scipy import stats

    found: Any = stats.spearmanr(first, second)
    return float(found.statistic)
