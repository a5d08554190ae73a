"""Batches for training and for top-1, from loader processes.

One `Dataset` item is one sample, asked for by (epoch, position in the split part); the sampler decides which. All
randomness is a function of (seed, epoch, position), so any number of ranks and workers gives the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from rwkvctl.base.errors import UserError
from rwkvctl.config.specs.augment import SegmentationAugment
from rwkvctl.config.specs.volumes import VolumesSpec
from rwkvctl.data.feed import decoded, order
from rwkvctl.data.feed.loader_processes import data_loader, plain_errors, shut_down
from rwkvctl.data.feed.samples import (
    Augment,
    Batch,
    ClassificationSamples,
    Samples,
    SegmentationSamples,
    UnlabeledSamples,
    dataset_for,
    size_of,
)
from rwkvctl.data.feed.schedule import Schedule
from rwkvctl.data.feed.volume_cache import Volumes
from rwkvctl.data.feed.volume_patches import VolumePatches
from rwkvctl.data.store.case_ids import cases_of
from rwkvctl.data.store.case_reader import reader_for
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.shards import fetched_ahead


class TrainLoader:
    """Endless training data, an epoch at a time.

    `epoch(e, consumed)` yields this rank's batches of epoch e after the first `consumed` samples (counted over all
    ranks). What it yields depends on (manifest, split, seed, augment, image_size, global_batch) alone: neither on
    workers nor, taken over all ranks, on the world size.
    image_size: side of a square, or (height, width). augment: None for none. workers: 0 loads in this process.
    epoch_steps: steps that count as an epoch, in place of one pass. micro_batch: images of a forward pass, see
    `Schedule`; a rank's come one after the other in its batch. unlabeled: of the samples without a mask, two
    views each, images (B, 2C, H, H) and targets (B,) as `views.two_views` makes them. volumes: patches of the volumes
    that the part's samples are of, in the place of their slices; it has been planned, and image_size does not matter.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        split: str | None,
        image_size: int | tuple[int, int],
        global_batch: int,
        rank: int,
        world_size: int,
        seed: int,
        workers: int,
        augment: Augment | None,
        tail: Literal["drop", "wrap"] = "drop",
        epoch_steps: int | None = None,
        micro_batch: int | None = None,
        unlabeled: bool = False,
        volumes: VolumesSpec | None = None,
    ):
        ids = manifest.unlabeled_ids() if unlabeled else manifest.ids(split, "train")
        if volumes is not None:
            ids = cases_of(ids)
        self._reader = reader = reader_for(manifest, ids)
        self._files = manifest.shard_files
        self._files.check_room(order.SHARDS_A_GROUP)
        shards = reader.shards() if volumes is None else reader.shards().repeat(volumes.patches_per_case)
        self.schedule = Schedule(shards, seed, global_batch, rank, world_size, tail, epoch_steps, micro_batch)
        self._batches = _Batches(self.schedule)
        dataset: Samples
        if volumes is not None:
            assert isinstance(augment, SegmentationAugment | None)
            spacing = None if isinstance(volumes.spacing, str) else volumes.spacing
            dataset = VolumePatches(Volumes(manifest, reader, spacing), seed, volumes, augment)
        elif unlabeled:
            assert isinstance(augment, SegmentationAugment)
            dataset = UnlabeledSamples(reader, seed, size_of(image_size), augment)
        else:
            dataset = dataset_for(manifest, reader, size_of(image_size), augment, seed)
        self._dataset = dataset
        self._ids, self._manifest = ids, manifest
        self._loader = data_loader(dataset, self._batches, workers)

    def keep_decoded(self, progress: Callable[[], None] = lambda: None) -> str:
        """Read segmentation's samples from the decoded ones that this machine keeps, see `decoded.keep`, and volumes
        from the resampled ones; before the first epoch. No batch is another. Returns a line for the log, perhaps
        empty."""
        if isinstance(self._dataset, VolumePatches):
            return self._dataset.volumes.keep(progress)
        if not isinstance(self._dataset, SegmentationSamples):
            return ""
        self._dataset.decoded, said = decoded.keep(
            self._manifest, self._reader, self._ids, self._dataset.size, progress=progress
        )
        return said

    @property
    def steps_per_epoch(self) -> int:
        return self.schedule.steps_per_epoch

    def epoch(self, epoch: int, consumed: int = 0) -> Iterator[Batch]:
        """Batches of `epoch`, beginning after `consumed` of its samples. Use one such iterator at a time."""
        self._batches.start(epoch, consumed)
        batches = plain_errors(iter(self._loader))
        if self._files.uri is None or self.schedule.epoch_steps is not None:
            return batches
        groups = self.schedule.shard_groups(epoch)
        return fetched_ahead(batches, self.schedule.global_batch, consumed, groups, self._files)

    def keys(self, epoch: int, consumed: int) -> list[str]:
        """Ids of all ranks' samples of the next batch, in the order of its micro-batches."""
        sequence = self.schedule.sequence(epoch, consumed)
        batch = sequence[consumed : consumed + self.schedule.global_batch]
        return [self._dataset.key(int(position)) for _, position in batch]

    def close(self) -> None:
        """End the worker processes (they end with the process anyhow)."""
        shut_down(self._loader)


class _Batches:
    """The batch sampler: tells the workers which samples are next. Set before each pass."""

    def __init__(self, schedule: Schedule):
        self._schedule = schedule
        self._next = (0, 0)

    def start(self, epoch: int, consumed: int) -> None:
        self._next = (epoch, consumed)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self._schedule.steps(*self._next)


class ClassificationEvalLoader:
    """Batches of a part for top-1: rank r of W has the ids r, r+W, ..., each once; the last batch may be smaller."""

    def __init__(
        self,
        manifest: Manifest,
        *,
        split: str | None,
        part: str,
        image_size: int | tuple[int, int],
        batch: int,
        rank: int,
        world_size: int,
        workers: int,
        ids: Sequence[str] | None = None,
    ):
        """`ids`: the images, where they are not those of one part of one split."""
        if manifest.task != "classification":
            raise UserError(f"{manifest.dataset} is a segmentation set; evaluate it by cases")
        every = manifest.ids(split, part) if ids is None else ids
        reader = reader_for(manifest, list(every)[rank::world_size])
        dataset = ClassificationSamples(reader, 0, size_of(image_size), None)
        places = [(0, position) for position in range(len(reader))]
        self._batches = [places[start : start + batch] for start in range(0, len(places), batch)]
        self._loader = data_loader(dataset, self._batches, workers)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return plain_errors(iter(self._loader))

    def close(self) -> None:
        """End the worker processes."""
        shut_down(self._loader)
