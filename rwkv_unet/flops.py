"""Multiply-accumulates and parameters of a model, by two conventions.

`Macs.paper` is the number that the paper prints: the convention of ptflops 0.7.5 with `backend="pytorch"`. Modules
are counted by type, functions by name, and a ReLU or an upsampling module therefore twice, once as the module and
once as the function that it calls. Whatever is reached by neither (WKV, `@`, einsum, `*`, `+`, sigmoid) counts 0.
(The methods `.add`, `.mul` and `.matmul`, which ptflops counts, cannot be told from the operators here: 0 too.
Recurrent and deformable layers, of which no model here is made, are left out. `nn.MultiheadAttention` counts as if it
were asked for its weights, which shows ptflops the two products and the softmax twice, whether or not they are fused.)
The CCM counts as published, with its 1x1 convolutions at the largest size, although here they run at smaller ones.

`Macs.true` is what the hardware has to multiply and add up: convolutions, linear layers, matrix products and
attention without their biases, WKV and selective scans. Norms, activations, resizing, gates and shortcuts count 0.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

import biwkv  # noqa: F401  registers torch.ops.biwkv
from rwkv_unet.ccm import CrossChannelMix
from rwkv_unet.layers import LayerNorm
from rwkv_unet.shifts import OmniShift
from rwkv_unet.volumetric_blocks import LayerNorm3d

WKV_MACS = 6
"""A token and channel of WKV: a numerator and a denominator, each decayed and added to from the left, from the right,
and by the token itself. Exponentials, e^k v and the division are left out. Every further axis adds 4."""


STATE_MACS = 3
"""A token, channel and number of a state in a selective scan, which is decayed, added to and read out. Exponentials and
the shortcut are left out."""


class Macs(NamedTuple):
    """Multiply-accumulates of one image or volume; see the module for the two conventions."""

    paper: int
    true: int


def count_macs(model: nn.Module, size: Sequence[int]) -> Macs:
    """Multiply-accumulates of one image (C, H, W) or volume (C, D, H, W) in evaluation mode; see `dry_run`."""
    return dry_run(model, size)[0]


def dry_run(model: nn.Module, size: Sequence[int]) -> tuple[Macs, Any]:
    """As `count_macs`, and the output, which has a shape but no values.

    Nothing is computed: the model runs once on tensors without data, on its own device and in its own dtype. The
    model is left as it was, training mode included.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    state: dict[str, Tensor] = {
        name: fake.from_tensor(x) for name, x in chain(model.named_parameters(), model.named_buffers())
    }

    paper = _PaperCounter()
    true = FlopCounterMode(display=False, custom_mapping=FLOPS)
    with _evaluation(model), paper.hooks(model), torch.no_grad(), _silent("torch._subclasses.fake_tensor"), fake:
        like = next((x for x in state.values() if x.is_floating_point()), torch.empty(0))
        image = torch.empty((1, *size), dtype=like.dtype, device=like.device)
        with true, paper:
            output = torch.func.functional_call(model, state, (image,))
    return Macs(paper=paper.macs, true=true.get_total_flops() // 2), output


def count_parameters(model: nn.Module) -> int:
    """Numbers in the model's parameters, frozen ones included.

    Ours have none that are never used. The authors' nets have: the paper's 3.15, 9.70 and 17.13 M (3,146,785,
    9,703,225 and 17,127,049 for 1 class) include 1,024, 1,280 and 1,536 of unused LayerNorms in the decoder, but not
    the unused attention of the encoder. Ours are 3,145,761, 9,701,945 and 17,125,513. Encoders are the same.
    """
    return sum(x.numel() for x in model.parameters())


@contextmanager
def _silent(logger: str) -> Iterator[None]:
    """Without what torch logs about an error that it raises as well."""
    found = logging.getLogger(logger)
    level = found.level
    found.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        found.setLevel(level)


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _wkv_flops(w_shape: Any, u_shape: Any, k_shape: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * WKV_MACS * prod(k_shape)


def _wkv_nd_flops(w_shape: Any, u_shape: Any, k_shape: Any, *args: Any, **kwargs: Any) -> int:
    axes = w_shape[0]
    return 2 * (WKV_MACS + 4 * (axes - 1)) * prod(k_shape)


def _selective_flops(x_shape: Any, step_shape: Any, a_shape: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * STATE_MACS * prod(x_shape) * a_shape[-1]


def _attention_flops(q_shape: Any, k_shape: Any, v_shape: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(q_shape, k_shape, v_shape)


FLOPS = {
    torch.ops.biwkv.forward: _wkv_flops,
    torch.ops.biwkv.nd_forward: _wkv_nd_flops,
    torch.ops.biwkv.selective_forward: _selective_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,  # unlike others not known to torch
}


class _PaperCounter(TorchFunctionMode):
    """Adds up ptflops' convention: `hooks` sees the modules, the mode itself the functions."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    @contextmanager
    def hooks(self, model: nn.Module) -> Iterator[None]:
        handles = [m.register_forward_hook(self._add) for m in model.modules() if type(m) in MODULES]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _add(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.macs += MODULES[type(module)](module, inputs[0], output)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in FUNCTIONS:
            self.macs += FUNCTIONS[func](output, *args, **(kwargs or {}))
        return output


def _conv(module: Any, x: Tensor, y: Tensor) -> int:
    positions = x if module.transposed else y
    per_position = prod(module.kernel_size) * module.in_channels * (module.out_channels // module.groups)
    bias = 0 if module.bias is None else y.numel()
    return per_position * positions.shape[0] * prod(positions.shape[2:]) + bias


def _linear(module: Any, x: Tensor, y: Tensor) -> int:
    return (module.in_features + (module.bias is not None)) * y.numel()


def _self_attention(module: Any, x: Tensor, y: Any) -> int:
    """Scaling, the four projections with their biases, products and softmax of nn.MultiheadAttention."""
    tokens, batch = x.shape[:2] if not module.batch_first else (x.shape[1], x.shape[0])
    biases = 1 + 3 * (module.in_proj_bias is not None)
    dim = module.embed_dim
    return batch * tokens * dim * (1 + 4 * dim + biases) + _attention_products(batch, tokens, dim, module.num_heads)


def _attention_products(batch: int, tokens: int, dim: int, heads: int) -> int:
    return batch * tokens**2 * (2 * dim + heads)


def _norm(module: Any, x: Tensor, y: Tensor) -> int:
    return x.numel() * (2 if getattr(module, "affine", False) else 1)


def _ccm(module: CrossChannelMix, features: Sequence[Tensor], outputs: Sequence[Tensor]) -> int:
    """What the published order, resize then project and project then resize, counts more than ours."""
    batch, width, *largest = features[-1].shape
    area, more = prod(largest), 0
    for x in features:
        dim, own_area = x.shape[1], prod(x.shape[2:])
        projections = (area - own_area) * (2 * dim * width + width + dim)
        resized_here = width * (area + own_area) if own_area != area else 0
        more += projections + dim * (area + own_area) - resized_here
    return batch * more


def _omni_shift(module: OmniShift, x: Tensor, y: Tensor) -> int:
    return module.five[0].numel() * x.numel()


def _module_input(module: Any, x: Tensor, y: Tensor) -> int:
    return x.numel()


def _module_output(module: Any, x: Tensor, y: Tensor) -> int:
    return y.numel()


def _input(y: Tensor, input: Tensor, *args: Any, **kwargs: Any) -> int:
    return input.numel()


def _output(y: Tensor, *args: Any, **kwargs: Any) -> int:
    return y.numel()


def _matmul(y: Tensor, input: Tensor, other: Tensor, **kwargs: Any) -> int:
    return input.numel() * other.shape[-1]


def _addmm(y: Tensor, input: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, **kwargs: Any) -> int:
    return a.numel() * b.shape[-1] + (input.numel() if beta else 0)


def _attention_function(
    y: Any, query: Tensor, key: Tensor, value: Tensor, dim: int, heads: int, *_: Any, **__: Any
) -> int:
    """The products and the softmax once more: ptflops sees them inside the module, unless they are fused."""
    return _attention_products(query.shape[1], query.shape[0], dim, heads)


MODULES: dict[type, Callable[[Any, Any, Any], int]] = {
    **dict.fromkeys([nn.Conv1d, nn.Conv2d, nn.Conv3d], _conv),
    **dict.fromkeys([nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d], _conv),
    nn.Linear: _linear,
    nn.MultiheadAttention: _self_attention,
    **dict.fromkeys([nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d], _norm),
    **dict.fromkeys([nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d], _norm),
    # ptflops asks for `affine`, which LayerNorm lacks (it has elementwise_affine), so it counts 1 an element.
    **dict.fromkeys([nn.GroupNorm, nn.LayerNorm, LayerNorm, LayerNorm3d], _norm),
    CrossChannelMix: _ccm,
    OmniShift: _omni_shift,  # as the one convolution that it runs as
    **dict.fromkeys([nn.ReLU, nn.PReLU, nn.ELU, nn.LeakyReLU, nn.ReLU6, nn.GELU, nn.Upsample], _module_output),
    **dict.fromkeys([nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d], _module_input),
    **dict.fromkeys([nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d], _module_input),
    **dict.fromkeys([nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d], _module_input),
    **dict.fromkeys([nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d], _module_input),
}

FUNCTIONS: dict[Any, Callable[..., int]] = {
    **dict.fromkeys([F.relu, F.prelu, F.elu, F.relu6, F.gelu, F.silu, F.softmax], _input),
    **dict.fromkeys([F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d], _input),
    **dict.fromkeys([F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d], _input),
    **dict.fromkeys([F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d], _input),
    **dict.fromkeys([F.interpolate, F.upsample, torch.mul, torch.add], _output),
    **dict.fromkeys([torch.matmul, torch.mm, torch.bmm, torch.Tensor.mm, torch.Tensor.bmm], _matmul),
    F.multi_head_attention_forward: _attention_function,
    **dict.fromkeys([torch.addmm, torch.baddbmm, torch.Tensor.addmm], _addmm),
}
