"""How long training stands still for a checkpoint: written in the background, and written before the next step.

    python benchmarks/bench_checkpoint.py --model rwkv_unet_b --steps 30

An epoch is one checkpoint and so many steps on random images. Epochs without a checkpoint, with one written here and
now, and with one written in the background take turns; the first of each kind is left out, and the least of the others
is printed. On a CPU the steps are measured in the training thread's own time, since other programs, and the writing
itself where there is no idle core, take turns with it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import rwkv_unet
from rwkvctl.training.checkpoint import TrainState
from rwkvctl.training.checkpoint_write import CheckpointWriter, save_checkpoint


def make_state(name: str, device: str) -> TrainState:
    """A network with its optimiser, after one step."""
    model = rwkv_unet.create_model(name, num_classes=4).to(device).to(memory_format=torch.channels_last)
    return TrainState(model, torch.optim.AdamW(model.parameters(), lr=1e-5), "0" * 64, {})


def train(state: TrainState, images: torch.Tensor, steps: int) -> None:
    for _ in range(steps):
        state.optimizer.zero_grad()
        state.model(images).square().mean().backward()
        state.optimizer.step()
        state.position.step += 1
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(call: Callable[[], object], clock: Callable[[], float]) -> float:
    """Seconds; the work that a GPU was given before is not counted, nor what it has still to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begun = clock()
    call()
    return clock() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="rwkv_unet_b")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20, help="optimiser steps of an epoch")
    parser.add_argument("--epochs", type=int, default=3, help="of each kind")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    clock = time.perf_counter if device == "cuda" else time.thread_time
    images = torch.randn(arguments.batch, 3, arguments.size, arguments.size, device=device)
    state = make_state(arguments.model, device)
    train(state, images, 2)
    megabytes = sum(t.nbytes for tensors in state.tensors().values() for t in tensors.values()) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        writer = CheckpointWriter(Path(folder) / "background", after=lambda seconds, **_: writing.append(seconds))
        writing: list[float] = []
        kinds: dict[str, Callable[[], object]] = {
            "none": lambda: None,
            "here and now": lambda: save_checkpoint(Path(folder) / "now", state),
            "in the background": lambda: writer.begin(state),
        }
        epochs: dict[str, list[float]] = {kind: [] for kind in kinds}
        stalls: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(arguments.epochs + 1):  # the first of each warms up
            for kind, checkpoint in kinds.items():
                stalls[kind].append(timed(checkpoint, time.perf_counter))
                epochs[kind].append(timed(lambda: train(state, images, arguments.steps), clock))
                writer.finish()
        writer.close()
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{where}, torch {torch.__version__}, {arguments.model}, {megabytes:.0f} MB of state")
    print(f"epochs of {arguments.steps} steps, batch {arguments.batch}, {arguments.size} px; ", end="")
    print(f"the least of {arguments.epochs}\n")
    print(f"{'checkpoint':20} {'stall ms':>9} {'of the epoch':>13} {'steps s':>9} {'of none':>8}")
    alone = min(epochs["none"][1:])
    for kind in kinds:
        stall, steps = min(stalls[kind][1:]), min(epochs[kind][1:])
        print(f"{kind:20} {1000 * stall:9.1f} {stall / (alone + stall):13.2%} {steps:9.2f} {steps / alone:7.2f}x")
    print(f"\nwritten in {1000 * min(writing[1:]):.0f} ms while training goes on")


if __name__ == "__main__":
    main()
