"""Whether probabilities can be believed: confidence against how often it is right, and the temperature that mends it.

The expected calibration error and the temperature are those of Guo et al., "On Calibration of Modern Neural Networks",
ICML 2017: of every pixel the probability of the chosen class (its confidence), in 15 bins of equal width; ECE is the
mean over pixels of |share that is right - mean confidence| of their bin. The temperature T is the one number that
divides all logits; it is the one with the least negative log-likelihood on validation cases. It never changes which
class is the most probable.

Most of a medical image is background that no network gets wrong, which makes any ECE small. So the pixels are those of
the box around what is foreground in the truth or in the prediction of a slice, enlarged by a tenth of its sides and by
8 pixels at least. Slices without any foreground have no such pixels. Beside it stands the ECE of all pixels.

Memory does not grow with the data: only sums by bin, and by temperature, are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 15
MARGIN, LEAST_MARGIN = 0.1, 8
TEMPERATURES = tuple(np.geomspace(0.25, 8.0, 101).tolist())
"""Those that are tried: steps of 3.5 %, in which the likelihood has no visible difference."""
UNIT = 2.0**-20
"""Confidences and likelihoods are rounded to multiples of it. Their sums over up to 2**33 pixels are exact, and so the
same in whichever order, and on however many workers, they are added up."""
PIXELS_A_SLICE = 8192
"""Most pixels of a slice that a temperature is fitted to, evenly spread."""


def sums() -> Tensor:
    return torch.zeros(3, BINS, dtype=torch.float64)


@dataclass
class Reliability:
    """Of the pixels in each bin of confidence: how many, the sum of their confidences, how many are right."""

    table: Tensor = field(default_factory=sums)
    """float64 (3, BINS), on the CPU."""

    def see(self, confidence: Tensor, right: Tensor) -> None:
        """confidence: float (N,) in [0, 1]; right: bool (N,)."""
        self.table += binned(confidence[None], right)[0]

    def ece(self) -> float | None:
        """None where there are no pixels."""
        counts, confidence, right = self.table
        total = float(counts.sum())
        return float((right - confidence).abs().sum()) / total if total else None

    def as_fields(self) -> dict[str, Any]:
        """By bin: pixels, mean confidence and share that is right; null for an empty one."""
        counts, confidence, right = self.table.tolist()
        return {
            "pixels": [int(count) for count in counts],
            "confidence": [total / count if count else None for total, count in zip(confidence, counts, strict=True)],
            "right": [total / count if count else None for total, count in zip(right, counts, strict=True)],
        }


def binned(confidence: Tensor, right: Tensor) -> Tensor:
    """float64 (K, 3, BINS), on the CPU, of confidences (K, N) and right (N,). On a GPU the order of sums would vary."""
    rows, confidence, right = len(confidence), confidence.cpu(), right.cpu()
    bins = (confidence * BINS).long().clamp_(0, BINS - 1) + BINS * torch.arange(rows)[:, None]
    size = rows * BINS
    confidence = exact(confidence)
    each = [torch.ones_like(confidence), confidence, right.to(confidence.dtype).expand_as(confidence)]
    found = [torch.bincount(bins.flatten(), weights=one.flatten(), minlength=size) for one in each]
    return torch.stack(found).reshape(3, rows, BINS).transpose(0, 1)


def exact(values: Tensor) -> Tensor:
    """float64, in multiples of `UNIT`."""
    return (values.double() / UNIT).round_() * UNIT


@dataclass
class Calibration:
    """What the pixels of the slices that were seen say of a network's probabilities.

    temperature: that of the model, 1 where it has none. fit: whether one is looked for.
    """

    temperature: float = 1.0
    fit: bool = False
    ignore_index: int | None = None
    raw: Reliability = field(default_factory=Reliability)
    """With the temperature 1, within the boxes."""
    calibrated: Reliability = field(default_factory=Reliability)
    all_raw: Reliability = field(default_factory=Reliability)
    all_calibrated: Reliability = field(default_factory=Reliability)
    likelihood: Tensor = field(default_factory=lambda: torch.zeros(len(TEMPERATURES), dtype=torch.float64))
    """The sum of the negative logarithms of the true class's probability, by temperature."""
    tables: Tensor = field(default_factory=lambda: torch.zeros(len(TEMPERATURES), 3, BINS, dtype=torch.float64))
    slices: int = 0

    def see(self, logits: Tensor, truth: Tensor, pred: Tensor) -> None:
        """Of one slice: logits float (C, H, W), C 1 for two classes; truth and pred uint8 (H, W), all on one device."""
        known = torch.ones_like(truth, dtype=torch.bool) if self.ignore_index is None else truth != self.ignore_index
        box = box_of(((truth > 0) & known) | (pred > 0))
        right = pred == truth
        for temperature, whole, inside in (
            (1.0, self.all_raw, self.raw),
            (self.temperature, self.all_calibrated, self.calibrated),
        ):
            confidence = confidence_of(logits / temperature)
            whole.see(confidence[known], right[known])
            if box is not None:
                inside.see(confidence[box][known[box]], right[box][known[box]])
        if self.fit and box is not None:
            self.try_all(logits[:, *box][:, known[box]], truth[box][known[box]])
        self.slices += 1

    def try_all(self, logits: Tensor, truth: Tensor) -> None:
        """logits (C, N), truth (N,)."""
        step = max(1, -(-truth.numel() // PIXELS_A_SLICE))
        logits, truth = logits[:, ::step].float(), truth[::step].long()
        if not truth.numel():
            return
        scale = 1 / torch.tensor(TEMPERATURES, device=logits.device, dtype=logits.dtype)[:, None]
        if len(logits) == 1:
            logits = torch.cat([torch.zeros_like(logits), logits])
        total = torch.logsumexp(logits[None] * scale[..., None], dim=1)  # (K, N)
        true = logits.gather(0, truth[None])[0]
        most, chosen = logits.max(dim=0)
        self.likelihood += exact((total - true * scale).cpu()).sum(dim=1)
        self.tables += binned((most * scale - total).exp(), chosen == truth)

    def merge(self, other: Calibration) -> None:
        """Add what another worker has seen."""
        for name in ("raw", "calibrated", "all_raw", "all_calibrated"):
            getattr(self, name).table += getattr(other, name).table
        self.likelihood += other.likelihood
        self.tables += other.tables
        self.slices += other.slices

    def fitted(self) -> Fitted | None:
        """None where no pixel was seen, or the best temperature is at an end of those that were tried: a network that
        is never right, or always, has none."""
        pixels = int(self.tables[0, 0].sum())
        best = int(self.likelihood.argmin())
        if not self.fit or not pixels or best in (0, len(TEMPERATURES) - 1):
            return None
        one = min(range(len(TEMPERATURES)), key=lambda place: abs(TEMPERATURES[place] - 1))
        eces = [Reliability(self.tables[place]).ece() for place in (one, best)]
        before, after = (float(self.likelihood[place]) / pixels for place in (one, best))
        return Fitted(round(TEMPERATURES[best], 4), pixels, (eces[0] or 0.0, eces[1] or 0.0), (before, after))

    def as_fields(self) -> dict[str, Any]:
        """For `summary.json`."""
        return {
            "temperature": self.temperature,
            "bins": BINS,
            "ece_raw": self.raw.ece(),
            "ece": self.calibrated.ece(),
            "ece_all_raw": self.all_raw.ece(),
            "ece_all": self.all_calibrated.ece(),
            "reliability_raw": self.raw.as_fields(),
            "reliability": self.calibrated.as_fields(),
        }


@dataclass(frozen=True)
class Fitted:
    """A temperature, and what it changes: ECE and mean negative log-likelihood before and after."""

    temperature: float
    pixels: int
    ece: tuple[float, float]
    likelihood: tuple[float, float]


def confidence_of(logits: Tensor) -> Tensor:
    """The probability of the most probable class, (H, W), of logits (C, H, W)."""
    if len(logits) == 1:
        return torch.sigmoid(logits[0].abs())
    return F.softmax(logits, dim=0).amax(dim=0)


def box_of(foreground: Tensor) -> tuple[slice, slice] | None:
    """Around what is True in (H, W), with its margin; None where nothing is."""
    sides = []
    for axis in (1, 0):
        found = foreground.any(dim=axis).nonzero()
        if not len(found):
            return None
        first, last = int(found[0]), int(found[-1]) + 1
        margin = max(LEAST_MARGIN, round(MARGIN * (last - first)))
        sides.append(slice(max(0, first - margin), last + margin))
    return sides[0], sides[1]
