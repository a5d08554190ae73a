"""How sure a model is of the mask of a case: what Dice it would have if its probabilities were true.

The Dice of a mask with an unknown truth, whose pixels are of the class with probability p, is about
2 sum(p over the mask) / (size of the mask + sum(p over all pixels)): a quotient of expectations. It is as good as the
probabilities are, so they should be calibrated. What is wrong with confidence it cannot see. The mean entropy over the
foreground, as in Mehrtash et al., "Confidence Calibration and Predictive Uncertainty Estimation for Deep Medical Image
Segmentation", IEEE TMI 2020, stands beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rwkvctl.models.sureness import Sureness


@dataclass
class Certainty:
    """Sums over the slices of a case."""

    sums: Tensor | None = None
    """float64 (3, classes): size of the mask, probability within it (of the background 0), probability everywhere."""
    entropy: float = 0.0
    """Over the predicted foreground."""
    foreground: int = 0

    def see(self, probabilities: Tensor, mask: Tensor) -> None:
        """probabilities: float (B, classes, H, W); mask: uint8 (B, H, W), on the same device."""
        inside = mask > 0
        own, ids = probabilities.movedim(1, 0)[:, inside], mask[inside]  # (classes, N): the foreground is small
        sums = torch.zeros(3, probabilities.shape[1], dtype=torch.float64)
        # Of each slice in float32, which is added pairwise: a copy in float64 would take longer than all else here.
        sums[2] = probabilities.sum(dim=(2, 3)).sum(dim=0, dtype=torch.float64).cpu()
        for class_id in ids.unique().tolist():
            of_class = own[class_id][ids == class_id]
            sums[0, class_id], sums[1, class_id] = len(of_class), of_class.sum(dtype=torch.float64).cpu()
        self.sums = sums if self.sums is None else self.sums + sums
        self.entropy += float(torch.special.entr(own).sum(dtype=torch.float64))
        self.foreground += len(ids)

    def result(self) -> Sureness:
        assert self.sums is not None, "no slice was seen"
        size, own, every = self.sums.tolist()
        predicted = [2 * own[c] / (size[c] + every[c]) if size[c] else None for c in range(1, len(size))]
        return Sureness(predicted, self.entropy / self.foreground if self.foreground else None)


def probabilities_of(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """(B, classes, H, W); one logit is that of the foreground."""
    logits = logits / temperature
    if logits.shape[1] == 1:
        foreground = torch.sigmoid(logits)
        return torch.cat([1 - foreground, foreground], dim=1)
    return torch.softmax(logits, dim=1)
