"""The data that a run reads, as MLflow knows data sets: a name, a digest, where it lies, how many samples it has."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

CONTEXTS = {"train": "training", "val": "validation", "test": "testing"}
"""What MLflow calls the parts of a data set."""


@dataclass(frozen=True)
class DataInput:
    """One part of a split of a prepared data set."""

    dataset: str
    fingerprint: str
    """Of the manifest."""
    split: str
    part: str
    source: str = ""
    """Path or URI."""
    samples: int = 0

    @property
    def name(self) -> str:
        return f"{self.dataset}/{self.split}/{self.part}"[:500]

    @property
    def digest(self) -> str:
        """MLflow tells data sets of one name apart by it."""
        return self.fingerprint[:12] or "unknown"

    def as_fields(self) -> dict[str, Any]:
        return asdict(self)

    def as_input(self) -> DatasetInput:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        kind, separator, _ = self.source.partition("://")
        return DatasetInput(
            Dataset(
                self.name,
                self.digest,
                kind if separator else "local",
                json.dumps({"uri": self.source}),
                profile=json.dumps({"num_rows": self.samples, "fingerprint": self.fingerprint}),
            ),
            [InputTag("mlflow.data.context", CONTEXTS.get(self.part, self.part))],
        )
