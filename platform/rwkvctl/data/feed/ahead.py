"""Batches on the GPU before they are asked for: the next one is copied while the current one is computed with."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from rwkvctl.data.feed.model_input import format_of
from rwkvctl.data.feed.samples import Batch


def ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on `device`, in their order; on a CPU as they are.

    Copies run on a stream of their own, out of the pinned memory that the loaders leave them in, so that the stream of
    the kernels has no gap between two steps. One batch is read ahead, so an error in reading one comes a step early.
    """
    return _copied_ahead(batches, device) if device.type == "cuda" else batches


def _copied_ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    side = torch.cuda.Stream(device)
    following = _copied(next(batches, None), device, side)
    while following is not None:
        kernels = torch.cuda.current_stream(device)
        kernels.wait_stream(side)
        for tensor in (following.images, following.targets):
            tensor.record_stream(kernels)  # its memory is not used again before these kernels have read it
        current, following = following, _copied(next(batches, None), device, side)
        yield current


def _copied(batch: Batch | None, device: torch.device, side: torch.cuda.Stream) -> Batch | None:
    if batch is None:
        return None
    with torch.cuda.stream(side):
        images = batch.images.to(device, non_blocking=True, memory_format=format_of(batch.images))
        return Batch(images, batch.targets.to(device, non_blocking=True), batch.keys)
