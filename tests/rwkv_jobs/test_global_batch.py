"""A step's loss and gradient are those of the global batch, however many workers share it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rwkv_jobs.worker import Worker, worker
from rwkvctl.config.specs.parts import ClusterSpec
from rwkvctl.training.losses import segmentation_loss

from .conftest import PATIENCE, server
from .test_interruptions import free_port

CLASSES = 4


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """The first image all foreground, half of the second ignored, the last all background; class 3 is nowhere."""
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=generator)
    target = torch.randint(0, CLASSES - 1, (4, 8, 8), generator=generator)
    target[0] = target[0].clamp(min=1)
    target[1, :4] = 255
    target[3] = 0
    return images, target


def step(me: Worker) -> dict[str, torch.Tensor]:
    """The loss of this worker's share of the batch, and the gradients as the optimiser finds them."""
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, CLASSES, 1)).double()
    wrapped = me.wrap(model)  # kept until the backward pass, in which it averages
    share = slice(me.rank * 4 // me.world_size, (me.rank + 1) * 4 // me.world_size)
    images, target = (x[share] for x in batch())
    loss = segmentation_loss(wrapped(images), target, alpha=0.4, beta=0.6, total=me.sum)
    loss.backward()
    return {"loss": loss.detach()} | {name: x.grad for name, x in model.named_parameters() if x.grad is not None}


def rank_of_a_group(environment: dict[str, str], out: str) -> None:
    os.environ.update(environment)
    with worker(ClusterSpec(launcher="process")) as me:
        torch.save(step(me), f"{out}.{me.rank}")


@pytest.mark.parametrize("workers", [2, 4])
def test_loss_and_gradient_do_not_depend_on_the_number_of_workers(tmp_path: Path, children: list[Any], workers: int):
    expected = step(Worker(0, 1, torch.device("cpu")))
    group = {"WORLD_SIZE": str(workers), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for rank in range(workers):
        arguments = (group | {"RANK": str(rank)}, str(tmp_path / "step"))
        children.append(process := server().Process(target=rank_of_a_group, args=arguments))
        process.start()
    for process in children:
        process.join(PATIENCE)
        assert process.exitcode == 0
    for rank in range(workers):
        found = torch.load(tmp_path / f"step.{rank}", weights_only=True)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12, msg=f"{name} of rank {rank}")
