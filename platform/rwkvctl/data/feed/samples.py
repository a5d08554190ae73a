"""Samples by (epoch, position), augmented: what the loader processes make, and how they are put into batches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from rwkvctl.base.errors import UserError
from rwkvctl.config.specs.augment import ClassificationAugment, SegmentationAugment
from rwkvctl.data.feed import order, transforms
from rwkvctl.data.feed.decoded import Decoded, stored_pair
from rwkvctl.data.feed.views import two_views
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.reader import Reader

Augment = ClassificationAugment | SegmentationAugment


class Batch(NamedTuple):
    """images uint8 (B, 3, H, W) for rgb8 or float32 (B, C, H, W) for float, channels last in memory;
    targets uint8 (B, H, W) masks or int64 (B,) labels; keys: the samples' ids. Of patches of volumes images are float32
    (B, C, D, H, W), targets (B, D, H, W), keys their cases.

    Of unlabeled samples: images (B, 2C, H, W) of two views each, targets int64 (B,) the turn of the second."""

    images: torch.Tensor
    targets: torch.Tensor
    keys: list[str]


def micro_batch(batch: Batch, part: int, parts: int) -> Batch:
    """One of the equal parts of a batch."""
    size = len(batch.keys) // parts
    own = slice(part * size, (part + 1) * size)
    return Batch(batch.images[own], batch.targets[own], batch.keys[own])


Item = tuple[torch.Tensor, torch.Tensor, str]


class Samples(Dataset[Item]):
    """(epoch, position) -> image, target, key."""

    def __init__(self, reader: Reader, seed: int):
        self.reader, self.seed = reader, seed

    def __len__(self) -> int:
        return len(self.reader)

    def key(self, position: int) -> str:
        """The id of a sample."""
        return self.reader.key(position)

    def __getitem__(self, place: tuple[int, int]) -> Item:
        epoch, position = place
        with one_thread():
            return self.load(position, order.sample_generator(self.seed, epoch, position))

    def load(self, position: int, rng: np.random.Generator) -> Item:
        raise NotImplementedError


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Threads gain nothing on small images, and their barriers wait for busy cores: 0.1 s a batch. 1 us to switch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class SegmentationSamples(Samples):
    """`decoded`: where samples may lie decoded; they are the same as from the shards."""

    decoded: Decoded | None = None

    def __init__(self, reader: Reader, seed: int, size: tuple[int, int], augment: SegmentationAugment | None):
        super().__init__(reader, seed)
        self.size, self.augment = size, augment

    def load(self, position: int, rng: np.random.Generator) -> Item:
        transform = transforms.segmentation_train(self.size, self.augment)
        found = self.decoded.pair(position) if self.decoded else None
        image, mask = found or stored_pair(self.reader, position, self.size)
        return *transform(image, mask, rng), self.reader.key(position)


class UnlabeledSamples(Samples):
    """Two views of an image, and how the second was turned."""

    def __init__(self, reader: Reader, seed: int, size: tuple[int, int], augment: SegmentationAugment):
        super().__init__(reader, seed)
        self.size, self.augment = size, augment

    def load(self, position: int, rng: np.random.Generator) -> Item:
        views, turn = two_views(self.reader.image(position, least=self.size), self.size, self.augment, rng)
        return views, torch.tensor(turn), self.reader.key(position)


class ClassificationSamples(Samples):
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


def dataset_for(
    manifest: Manifest, reader: Reader, size: tuple[int, int], augment: Augment | None, seed: int
) -> Samples:
    if manifest.task == "classification":
        if isinstance(augment, SegmentationAugment):
            raise UserError(
                f"{manifest.dataset} is for classification; its augmentation cannot be that of segmentation"
            )
        return ClassificationSamples(reader, seed, size, augment)
    if isinstance(augment, ClassificationAugment):
        raise UserError(f"{manifest.dataset} is for segmentation; its augmentation cannot be that of classification")
    return SegmentationSamples(reader, seed, size, augment)


def size_of(image_size: int | tuple[int, int]) -> tuple[int, int]:
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(size) < 1:
        raise UserError(f"image size {image_size}: give a positive number of pixels")
    return size


def collate(samples: Sequence[Item]) -> Batch:
    """Samples (C, H, W) whose channels lie last in memory, as they do in the batch: copies of whole rows. Patches
    (C, D, H, W) of volumes lie as they are."""
    images, targets, keys = zip(*samples, strict=True)
    with one_thread():
        if images[0].ndim == 4:
            return Batch(torch.stack(images), torch.stack(targets), list(keys))
        channels_last = torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)
        return Batch(channels_last, torch.stack(targets), list(keys))
