"""One plan of strides and kernels, as nnU-Net makes it of the data, in the options of each network for volumes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rwkv_unet.baselines.monai_networks import MONAI
from rwkv_unet.config import VOLUMETRIC_MODELS, suggest
from rwkv_unet.volumetric import STAGES, triples
from rwkv_unet.volumetric_blocks import Triple

Levels = list[Triple]
Plan = Callable[[Levels, Levels, Triple], dict[str, Any]]
"""Of strides, kernels and patch."""


def planned_options(
    name: str,
    strides: Sequence[Sequence[int]],
    kernels: Sequence[Sequence[int]],
    patch: Sequence[int],
    given: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The options with which `create_model(name, ...)` goes down as planned.

    Networks that halve all axes alike (SwinUNETR, SegResNet, VNet, BasicUNet, UNETR) leave the plan aside; their
    `divisor` says what a patch must be a multiple of. RWKV-UNet has five levels, and does without those that a plan has
    beyond; MONAI's UNet and AttentionUnet have kernels of 3 everywhere.

    Args:
        strides: of each level, the finest first, the 1 or 2 by which it is reached along depth, height and width; the
            first is (1, 1, 1).
        kernels: of each level, 1 or 3 along each axis; 3 stands for the network's own size.
        patch: voxels (D, H, W) that the network will see.
        given: options that are already chosen. They stay; if one of them is the plan's, nothing is planned.

    Raises:
        ValueError: for a name that is not volumetric, or a plan of another form.
    """
    steps = triples("strides", strides, None, (1, 2))
    sizes = triples("kernels", kernels, len(steps), (1, 3))
    if not steps or steps[0] != (1, 1, 1):
        raise ValueError(f"strides must begin with (1, 1, 1), that of the finest level, not {strides!r}")
    depth, height, width = patch
    plan = _plan_of(name)(steps, sizes, (depth, height, width))
    axes = {"spatial_dims": 3} if name.startswith("monai:") else {}
    chosen = dict(given or {})
    decided = (plan.keys() | {"flat_stages"}) & chosen.keys()
    return axes | (chosen if decided else plan | chosen)


def _plan_of(name: str) -> Plan:
    if name in VOLUMETRIC_MODELS:
        return _rwkv_unet
    family, _, member = name.partition(":")
    if family != "monai" or member not in MONAI:
        known = [*VOLUMETRIC_MODELS, *(f"monai:{each}" for each in MONAI)]
        raise ValueError(f"{name} is no network for volumes; {suggest(name, known)}")
    return MONAI_PLANS.get(member, lambda strides, kernels, patch: {})


def _rwkv_unet(strides: Levels, kernels: Levels, patch: Triple) -> dict[str, Any]:
    strides, kernels = _at_least(1 + STAGES, strides, kernels)
    return {"strides": _lists(strides[1 : 1 + STAGES]), "kernels": _lists(kernels[: 1 + STAGES])}


def _dyn_unet(strides: Levels, kernels: Levels, patch: Triple) -> dict[str, Any]:
    strides, kernels = _at_least(3, strides, kernels)
    return {
        "kernel_size": _lists(kernels),
        "strides": _lists(strides),
        "upsample_kernel_size": _lists(strides[1:]),
    }  # its widths are nnU-Net's unless it is given others


def _u_net(strides: Levels, kernels: Levels, patch: Triple) -> dict[str, Any]:
    strides, _ = _at_least(2, strides, kernels)
    return {"channels": _widths(len(strides)), "strides": _lists(strides[1:])}


def _unetr(strides: Levels, kernels: Levels, patch: Triple) -> dict[str, Any]:
    """It is built for one size, which its patches of 16 divide."""
    return {"img_size": [-(-side // 16) * 16 for side in patch]}


MONAI_PLANS: dict[str, Plan] = {"DynUNet": _dyn_unet, "UNet": _u_net, "AttentionUnet": _u_net, "UNETR": _unetr}


def _at_least(levels: int, strides: Levels, kernels: Levels) -> tuple[Levels, Levels]:
    """With levels more that are no smaller, where a network must have them."""
    more = max(0, levels - len(strides))
    return strides + more * [(1, 1, 1)], kernels + more * kernels[-1:]


def _widths(levels: int) -> list[int]:
    """Of nnU-Net: twice as wide at each level, and no wider than 320."""
    return [min(32 * 2**level, 320) for level in range(levels)]


def _lists(levels: Levels) -> list[list[int]]:
    """As YAML and JSON have them."""
    return [list(level) for level in levels]
