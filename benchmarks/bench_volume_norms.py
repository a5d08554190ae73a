"""RWKV-UNet over three axes with each norm between its convolutions, trained on small batches of made-up volumes.

    python benchmarks/bench_volume_norms.py [--model rwkv_unet_3d_xt] [--steps 300] [--seeds 3] [--batch 2]

A volume has four ellipsoids, two of each class, which differ in brightness alone, under noise, a bias field and a
contrast of its own, scaled to mean 0 and deviation 1. Patches are cut around them; whole volumes, six times as large
and none of those that were trained on, are scored in evaluation mode, with the statistics that a norm keeps (`eval`)
and, of BatchNorm, with those of the volume itself (`own`). All norms see the same patches in the same order.
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwkv_unet import create_model
from rwkv_unet.volumetric_blocks import NORMS

VOLUME, PATCH, CLASSES = (24, 64, 64), (16, 32, 32), 3


def volume(seed: int) -> tuple[Tensor, Tensor]:
    """An image (1, D, H, W) and its classes (D, H, W)."""
    draw = torch.Generator().manual_seed(seed)
    grid = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in VOLUME), indexing="ij"))
    sizes = torch.tensor(VOLUME, dtype=torch.float)
    mask = torch.zeros(VOLUME, dtype=torch.long)
    for label in (1, 2, 1, 2):
        centre = sizes * (0.15 + 0.7 * torch.rand(3, generator=draw))
        radii = sizes * (0.08 + 0.12 * torch.rand(3, generator=draw))
        mask[(((grid - centre[:, None, None, None]) / radii[:, None, None, None]) ** 2).sum(0) < 1] = label
    image = torch.tensor([0.0, 0.7, 1.4])[mask] + 0.5 * torch.randn(VOLUME, generator=draw)
    field = F.interpolate(torch.randn(1, 1, 2, 3, 3, generator=draw), size=VOLUME, mode="trilinear", align_corners=True)
    image = image * (0.5 + 2 * torch.rand(1, generator=draw)) * (1 + 0.25 * field[0, 0])
    return ((image - image.mean()) / image.std())[None], mask


def patches(cases: list[tuple[Tensor, Tensor]], batch: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images (B, 1, *PATCH) and classes (B, *PATCH), around a voxel that is no background."""
    images, masks = [], []
    for i in torch.randint(len(cases), (batch,), generator=draw).tolist():
        image, mask = cases[i]
        places = mask.nonzero()
        centre = places[int(torch.randint(len(places), (1,), generator=draw))].tolist()
        starts = [min(max(c - p // 2, 0), n - p) for c, p, n in zip(centre, PATCH, VOLUME, strict=True)]
        cut = tuple(slice(start, start + p) for start, p in zip(starts, PATCH, strict=True))
        images.append(image[(slice(None), *cut)])
        masks.append(mask[cut])
    return torch.stack(images), torch.stack(masks)


def train(model: nn.Module, cases: list[tuple[Tensor, Tensor]], steps: int, batch: int) -> float:
    """Adam on cross entropy and Dice; seconds a step."""
    draw, begin = torch.Generator().manual_seed(0), time.perf_counter()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, steps, power=0.9)
    model.train()
    for _ in range(steps):
        image, mask = patches(cases, batch, draw)
        logits = model(image)
        one_hot, shares = F.one_hot(mask, CLASSES).movedim(-1, 1), logits.softmax(1)
        both, total = (x.sum((0, 2, 3, 4))[1:] for x in (shares * one_hot, shares + one_hot))
        loss = F.cross_entropy(logits, mask) + 1 - ((2 * both + 1) / (total + 1)).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 12.0)
        optimizer.step()
        schedule.step()
    return (time.perf_counter() - begin) / steps


@torch.no_grad()
def score(model: nn.Module, cases: list[tuple[Tensor, Tensor]]) -> float:
    """Mean DSC of classes 1 and 2 over whole volumes."""
    found = []
    for image, mask in cases:
        predicted = model(image[None])[0].argmax(0)
        for label in (1, 2):
            ours, theirs = predicted == label, mask == label
            if theirs.any():
                found.append(2 * float((ours & theirs).sum()) / float(ours.sum() + theirs.sum()))
    return sum(found) / len(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="rwkv_unet_3d_xt")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=2)
    args = parser.parse_args()
    cases, unseen = [volume(seed) for seed in range(16)], [volume(1000 + seed) for seed in range(12)]
    print(f"{args.model}, {args.steps} steps, batch {args.batch}, {torch.get_num_threads()} threads")
    print(f"{'norm':10}{'seed':>5}{'eval':>8}{'own':>8}{'ms/step':>9}")
    for seed in range(args.seeds):
        for norm in NORMS:
            torch.manual_seed(seed)
            model = create_model(args.model, num_classes=CLASSES, in_channels=1, norm=norm)
            seconds = train(model, cases, args.steps, args.batch)
            kept = score(model.eval(), unseen)
            for module in model.modules():
                if isinstance(module, nn.BatchNorm3d):
                    module.train()
            own = score(model, unseen)
            print(f"{norm:10}{seed:5}{kept:8.4f}{own:8.4f}{1000 * seconds:9.0f}", flush=True)


if __name__ == "__main__":
    main()
