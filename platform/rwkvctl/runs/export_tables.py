"""The two tables of an export as Parquet files: runs, and every point of every metric. Written piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from mlflow.entities import Metric

TIME = pa.timestamp("ms", tz="UTC")
RUNS = pa.schema(
    [
        ("run_id", pa.string()),
        ("name", pa.string()),
        ("experiment", pa.string()),
        ("status", pa.string()),
        ("start", TIME),
        ("end", TIME),
        ("parent_run_id", pa.string()),
        ("params", pa.map_(pa.string(), pa.string())),
        ("tags", pa.map_(pa.string(), pa.string())),
        ("models", pa.list_(pa.string())),
        ("datasets", pa.list_(pa.struct([(name, pa.string()) for name in ("name", "digest", "context")]))),
        ("points", pa.int64()),
        ("final", pa.bool_()),
        ("tracking_uri", pa.string()),
    ]
)
"""`points`: rows of the run in the other table; `final`: the run has ended, so that no more will come."""
POINTS = pa.schema(
    [
        ("run_id", pa.string()),
        ("key", pa.string()),
        ("step", pa.int64()),
        ("time", TIME),
        ("value", pa.float64()),
        ("model_id", pa.string()),
        ("dataset_name", pa.string()),
        ("dataset_digest", pa.string()),
    ]
)
GROUP_ROWS = 1 << 17
"""Points of a row group: no more are in memory at once."""


def write_runs(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """runs.parquet, from rows with the names of `RUNS`; times in ms since 1970, params and tags as dicts."""
    with pq.ParquetWriter(path, RUNS, compression="zstd") as writer:
        for start in range(0, len(rows), 1000):
            part = [
                row | {key: list(row[key].items()) for key in ("params", "tags")} for row in rows[start : start + 1000]
            ]
            writer.write_table(pa.Table.from_pylist(part, RUNS))


class PointsWriter:
    """The points of one run, page by page."""

    def __init__(self, path: Path, run_id: str):
        self.run_id, self.rows = run_id, 0
        self._writer = pq.ParquetWriter(path, POINTS, compression="zstd")

    def add(self, points: Sequence[Metric]) -> None:
        columns = [
            [self.run_id] * len(points),
            [point.key for point in points],
            [point.step for point in points],
            [point.timestamp for point in points],
            [point.value for point in points],
            [point.model_id for point in points],
            [point.dataset_name for point in points],
            [point.dataset_digest for point in points],
        ]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, POINTS, strict=True)]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=POINTS))
        self.rows += len(points)

    def __enter__(self) -> PointsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()


def count(path: Path) -> int:
    """How many points a file has."""
    return pq.read_metadata(path).num_rows


def merge_points(path: Path, parts: Iterable[Path]) -> None:
    """metrics.parquet, from the points of single runs, in row groups of `GROUP_ROWS`."""
    with pq.ParquetWriter(path, POINTS, compression="zstd") as writer:
        waiting: list[pa.RecordBatch] = []
        count = 0
        for part in parts:
            with pq.ParquetFile(part) as file:
                for batch in file.iter_batches(GROUP_ROWS // 2):
                    waiting.append(batch)
                    count += batch.num_rows
                    if count >= GROUP_ROWS // 2:
                        writer.write_table(pa.Table.from_batches(waiting, POINTS))
                        waiting, count = [], 0
        if waiting:
            writer.write_table(pa.Table.from_batches(waiting, POINTS))
