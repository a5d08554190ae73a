"""Batches for training and evaluation, whole cases for segmentation metrics.

One `Dataset` item is one sample, asked for by (epoch, position in the split part); the sampler decides which. All
randomness is a function of (seed, epoch, position), so any number of ranks and workers gives the same batches.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from rwkvctl.base.errors import UserError
from rwkvctl.config.specs.augment import ClassificationAugment, SegmentationAugment
from rwkvctl.data.feed import order, transforms
from rwkvctl.data.feed.views import two_views
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.reader import Reader, reader_for
from rwkvctl.data.store.shards import fetched_ahead

Augment = ClassificationAugment | SegmentationAugment

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Batch(NamedTuple):
    """images uint8 (B, 3, H, W) for rgb8 or float32 (B, 1, H, W) for float, channels last in memory;
    targets uint8 (B, H, W) masks or int64 (B,) labels; keys: the samples' ids."""

    images: torch.Tensor
    targets: torch.Tensor
    keys: list[str]


def to_input(images: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """The model's input, float32 (B, C, H, W) on `device`: uint8 normalised by ImageNet's mean and deviation there
    (a quarter of the bytes to copy), float32 as it is."""
    images = images.to(device, non_blocking=True, memory_format=torch.channels_last)
    if images.dtype != torch.uint8:
        return images.float()
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=images.device).view(1, 3, 1, 1)
    return images.float().div_(255).sub_(mean).div_(std)


# Training -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Schedule:
    """Which samples this rank trains on at which step: the whole of resuming, without any file or tensor.

    `shard_of` (N,) is the shard number of every sample of the part. Tail `drop` leaves out the samples after the
    last whole batch (others in every epoch); `wrap` fills that batch with the head of the next epoch's order.
    With `epoch_steps` an epoch is so many steps, and goes on where the one before has stopped in the passes.
    """

    shard_of: NDArray[np.int32]
    seed: int
    global_batch: int
    rank: int
    world_size: int
    tail: Literal["drop", "wrap"] = "drop"
    epoch_steps: int | None = None

    def __post_init__(self) -> None:
        if self.global_batch < 1 or self.global_batch % self.world_size:
            raise UserError(
                f"global batch {self.global_batch} is not divisible by the world size {self.world_size}; "
                "change the batch or the number of processes"
            )
        if not 0 <= self.rank < self.world_size:
            raise UserError(f"rank {self.rank} does not exist among {self.world_size} processes")
        if self.tail not in ("drop", "wrap"):
            raise UserError(f"tail {self.tail!r}: choose drop or wrap")
        if not self.steps_per_pass:
            raise UserError(
                f"global batch {self.global_batch} is larger than the {len(self.shard_of)} training samples; "
                "make it smaller, or set the tail to wrap"
            )

    @property
    def steps_per_pass(self) -> int:
        whole, rest = divmod(len(self.shard_of), self.global_batch)
        return whole + (1 if rest and self.tail == "wrap" else 0)

    @property
    def steps_per_epoch(self) -> int:
        return self.epoch_steps or self.steps_per_pass

    def steps(self, epoch: int, consumed: int = 0) -> Iterator[list[tuple[int, int]]]:
        """This rank's (epoch, position) pairs step by step, from `consumed` samples of the epoch on."""
        if self.epoch_steps is None:
            yield from self._pass(epoch, consumed)
            return
        step = epoch * self.epoch_steps + consumed // self.global_batch
        while step < (epoch + 1) * self.epoch_steps:
            number, done = divmod(step, self.steps_per_pass)
            left = (epoch + 1) * self.epoch_steps - step
            yield from itertools.islice(self._pass(number, done * self.global_batch), left)
            step += min(left, self.steps_per_pass - done)

    def _pass(self, epoch: int, consumed: int) -> Iterator[list[tuple[int, int]]]:
        samples = self.sequence(epoch, consumed)
        own = self.global_batch // self.world_size
        for start in range(consumed, len(samples) - self.global_batch + 1, self.global_batch):
            first = start + self.rank * own
            yield [(int(e), int(i)) for e, i in samples[first : first + own]]

    def sequence(self, epoch: int, consumed: int = 0) -> NDArray[np.int64]:
        """All ranks' samples of an epoch in order, (n, 2) of (epoch, position); a wrapped one has its own epoch.

        `consumed` matters for the length with wrap: whole batches are counted from there.
        """
        n = len(self.shard_of)
        length = n
        if self.tail == "wrap" and consumed < n:
            length = consumed + -(-(n - consumed) // self.global_batch) * self.global_batch
        rounds = range(-(-length // n))
        parts = [
            np.stack([np.full(n, epoch + k), order.epoch_order(self.shard_of, self.seed, epoch + k)], axis=1)
            for k in rounds
        ]
        return np.concatenate(parts)[:length]

    def shard_groups(self, epoch: int) -> list[tuple[int, list[int]]]:
        """The groups of shards of an epoch and the first of the next: (samples before the group, its shards)."""
        first = order.epoch_groups(self.shard_of, self.seed, epoch + 1)[0][1]
        return [*order.epoch_groups(self.shard_of, self.seed, epoch), (len(self.shard_of), first)]


class TrainLoader:
    """Endless training data, an epoch at a time.

    `epoch(e, consumed)` yields this rank's batches of epoch e after the first `consumed` samples (counted over all
    ranks). What it yields depends on (manifest, split, seed, augment, image_size, global_batch) alone: neither on
    workers nor, taken over all ranks, on the world size.
    image_size: side of a square, or (height, width). augment: None for none. workers: 0 loads in this process.
    epoch_steps: steps that count as an epoch, in place of one pass. unlabeled: of the samples without a mask, two
    views each, images (B, 2C, H, H) and targets (B,) as `views.two_views` makes them.
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
        unlabeled: bool = False,
    ):
        ids = manifest.unlabeled_ids() if unlabeled else manifest.ids(split, "train")
        reader = reader_for(manifest, ids)
        self._files = manifest.shard_files
        self._files.check_room(order.SHARDS_A_GROUP)
        self.schedule = Schedule(reader.index.shard, seed, global_batch, rank, world_size, tail, epoch_steps)
        self._batches = _Batches(self.schedule)
        if unlabeled:
            assert isinstance(augment, SegmentationAugment)
            dataset: _Samples = _UnlabeledSamples(reader, seed, _size(image_size), augment)
        else:
            dataset = _dataset(manifest, reader, _size(image_size), augment, seed)
        self._loader = _data_loader(dataset, self._batches, workers)

    @property
    def steps_per_epoch(self) -> int:
        return self.schedule.steps_per_epoch

    def epoch(self, epoch: int, consumed: int = 0) -> Iterator[Batch]:
        """Batches of `epoch`, beginning after `consumed` of its samples. Use one such iterator at a time."""
        self._batches.start(epoch, consumed)
        batches = _plain_errors(iter(self._loader))
        if self._files.uri is None or self.schedule.epoch_steps is not None:
            return batches
        groups = self.schedule.shard_groups(epoch)
        return fetched_ahead(batches, self.schedule.global_batch, consumed, groups, self._files)

    def close(self) -> None:
        """End the worker processes (they end with the process anyhow)."""
        _shut_down(self._loader)


class _Batches:
    """The batch sampler: tells the workers which samples are next. Set before each pass."""

    def __init__(self, schedule: Schedule):
        self._schedule = schedule
        self._next = (0, 0)

    def start(self, epoch: int, consumed: int) -> None:
        self._next = (epoch, consumed)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self._schedule.steps(*self._next)


Item = tuple[torch.Tensor, torch.Tensor, str]


class _Samples(Dataset[Item]):
    """(epoch, position) -> image, target, key."""

    def __init__(self, reader: Reader, seed: int):
        self.reader, self.seed = reader, seed

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, place: tuple[int, int]) -> Item:
        epoch, position = place
        with _one_thread():
            return self.load(position, order.sample_generator(self.seed, epoch, position))

    def load(self, position: int, rng: np.random.Generator) -> Item:
        raise NotImplementedError


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Threads gain nothing on small images, and their barriers wait for busy cores: 0.1 s a batch. 1 us to switch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _SegmentationSamples(_Samples):
    def __init__(self, reader: Reader, seed: int, size: tuple[int, int], augment: SegmentationAugment | None):
        super().__init__(reader, seed)
        self.size, self.augment = size, augment

    def load(self, position: int, rng: np.random.Generator) -> Item:
        transform = transforms.segmentation_train(self.size, self.augment)
        image, mask = self.reader.image(position, least=self.size), self.reader.mask(position)
        return *transform(image, mask, rng), self.reader.key(position)


class _UnlabeledSamples(_Samples):
    """Two views of an image, and how the second was turned."""

    def __init__(self, reader: Reader, seed: int, size: tuple[int, int], augment: SegmentationAugment):
        super().__init__(reader, seed)
        self.size, self.augment = size, augment

    def load(self, position: int, rng: np.random.Generator) -> Item:
        views, turn = two_views(self.reader.image(position, least=self.size), self.size, self.augment, rng)
        return views, torch.tensor(turn), self.reader.key(position)


class _ClassificationSamples(_Samples):
    """Without `augment`, the evaluation transform."""

    def __init__(self, reader: Reader, seed: int, size: tuple[int, int], augment: ClassificationAugment | None):
        super().__init__(reader, seed)
        self.size, self.augment = size, augment
        self._transform: transforms.ClassificationTransform | None = None

    def load(self, position: int, rng: np.random.Generator) -> Item:
        if self._transform is None:  # made in the worker: closures cannot be pickled
            self._transform = transforms.classification_train(self.size, self.augment)
        image = self._transform(self.reader.photo(position), rng)
        return image, torch.tensor(self.reader.label(position)), self.reader.key(position)


def _dataset(manifest: Manifest, reader: Reader, size: tuple[int, int], augment: Augment | None, seed: int) -> _Samples:
    if manifest.task == "classification":
        if isinstance(augment, SegmentationAugment):
            raise UserError(
                f"{manifest.dataset} is for classification; its augmentation cannot be that of segmentation"
            )
        return _ClassificationSamples(reader, seed, size, augment)
    if isinstance(augment, ClassificationAugment):
        raise UserError(f"{manifest.dataset} is for segmentation; its augmentation cannot be that of classification")
    return _SegmentationSamples(reader, seed, size, augment)


def _size(image_size: int | tuple[int, int]) -> tuple[int, int]:
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(size) < 1:
        raise UserError(f"image size {image_size}: give a positive number of pixels")
    return size


def _collate(samples: Sequence[Item]) -> Batch:
    images, targets, keys = zip(*samples, strict=True)
    with _one_thread():
        channels_last = torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)
        return Batch(channels_last, torch.stack(targets), list(keys))


# Worker processes ---------------------------------------------------------------------------------------------------


def _data_loader(dataset: _Samples, batches: Any, workers: int) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_init_worker,
        multiprocessing_context=_context() if workers else None,
        generator=torch.Generator(),  # without it every pass would draw from the global generator
    )


def _context() -> Any:
    """Workers come from a fork server: a process without threads, forked anew for each worker.

    A plain fork copies a process that has threads (gloo, Ray, MLflow, OpenMP) with their locks as they are, and may
    hang; spawn imports torch again in each worker. Here it is imported once, by the server.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rwkvctl.data.feed.loaders"])
    return context


def _init_worker(worker: int) -> None:
    """One thread a worker, and no life after the training process, which alone answers to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:  # a killed parent cannot stop its workers, and the fork server outlives it
        threading.Thread(target=_die_with, args=(parent,), daemon=True).start()


def _die_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _plain_errors(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches; a UserError from a worker gets back its one line, which torch wraps into a traceback."""
    try:
        yield from batches
    except UserError as error:
        line = str(error).strip().splitlines()[-1]
        raise UserError(line.rpartition("UserError: ")[2]) from None


def _shut_down(loader: DataLoader[Any]) -> None:
    iterator = getattr(loader, "_iterator", None)
    if iterator is not None:
        iterator._shutdown_workers()
        loader._iterator = None


# Evaluation ---------------------------------------------------------------------------------------------------------


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
    ):
        if manifest.task != "classification":
            raise UserError(f"{manifest.dataset} is a segmentation set; evaluate it by cases")
        reader = reader_for(manifest, manifest.ids(split, part)[rank::world_size])
        dataset = _ClassificationSamples(reader, 0, _size(image_size), None)
        places = [(0, position) for position in range(len(reader))]
        self._batches = [places[start : start + batch] for start in range(0, len(places), batch)]
        self._loader = _data_loader(dataset, self._batches, workers)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return _plain_errors(iter(self._loader))

    def close(self) -> None:
        """End the worker processes."""
        _shut_down(self._loader)


class Case(NamedTuple):
    """A sample at its native resolution.

    image: uint8 (H, W, 3), float32 (H, W) or float32 (D, H, W), which is read slice by slice as it is used;
    mask: uint8 of the same extent;
    spacing_mm: [z,] y, x or None when the source does not tell; meta: the sample's json.
    """

    key: str
    image: NDArray[np.uint8] | NDArray[np.float32]
    mask: NDArray[np.uint8]
    spacing_mm: tuple[float, ...] | None
    meta: dict[str, Any]


def iter_cases(
    manifest: Manifest, *, split: str | None, part: str, rank: int = 0, world_size: int = 1
) -> Iterator[Case]:
    """The cases of a part, one at a time in memory; rank r of W has the ids r, r+W, ..."""
    if manifest.task != "segmentation":
        raise UserError(f"{manifest.dataset} is a classification set; it has no cases with masks")
    reader = reader_for(manifest, manifest.ids(split, part)[rank::world_size])
    return (_case(reader, row) for row in range(len(reader)))


def _case(reader: Reader, row: int) -> Case:
    meta = reader.meta(row)
    spacing = meta.get("spacing_mm")
    mask = reader.mask(row)
    image = reader.volume(row) if mask.ndim == 3 else reader.image(row)
    if image.shape[: mask.ndim] != mask.shape:
        raise UserError(f"{reader.key(row)}: image {image.shape} and mask {mask.shape} differ; prepare the data again")
    return Case(reader.key(row), image, mask, tuple(map(float, spacing)) if spacing else None, meta)
