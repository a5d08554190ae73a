"""What a pass over the cases says of the model's probabilities: their calibration, and how sure it is of each case."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from rwkvctl.data.feed.cases import Place
from rwkvctl.data.store.reader import Reader
from rwkvctl.models.calibrate import Truths
from rwkvctl.models.certainty import Certainty, probabilities_of
from rwkvctl.models.sureness import Sureness
from rwkvctl.training.calibration import Calibration


class Confidence:
    """Looks at the logits of one worker's cases, at their native size, as they are turned into masks."""

    def __init__(self, reader: Reader, temperature: float, *, fit: bool, ignore_index: int | None):
        self.reader = reader
        self.calibration = Calibration(temperature, fit, ignore_index)
        self._of_row: dict[int, Certainty] = defaultdict(Certainty)
        self._truths = Truths(reader)

    def see(self, places: Sequence[Place], logits: Tensor, masks: Tensor) -> None:
        """logits: float (B, C, H, W); masks: uint8 (B, H, W), on the same device."""
        for place, own, mask in zip(places, logits, masks, strict=True):
            truth = torch.from_numpy(self._truths.of(place.row, place.z if place.depth else None)).to(logits.device)
            self.calibration.see(own, truth, mask)
            probabilities = probabilities_of(own[None], self.calibration.temperature)
            self._of_row[place.row].see(probabilities, mask[None])

    def cases(self) -> dict[str, Sureness]:
        """By key."""
        return {self.reader.key(row): found.result() for row, found in self._of_row.items()}
