"""The model on a GPU is the model on the CPU: every backend, layout and precision, eager and compiled.

Needs pytest, torch, timm and the CUDA device, nothing else of ours.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from biwkv import bi_wkv
from biwkv.op import BACKENDS
from rwkv_unet import create_model, spatial_mix

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore"),  # the compiler's own
]
IMAGE = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(7))
BF16 = 2e-2


@pytest.fixture(autouse=True)
def no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


def net(name: str = "rwkv_unet_t") -> Any:
    """With statistics and decays that are not those of the start."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=4, drop_path=0.0)
    with torch.no_grad():
        for key, x in (*model.named_parameters(), *model.named_buffers()):
            if key.endswith((".decay", ".first", "running_mean")):
                x.normal_()
            elif key.endswith("running_var"):
                x.uniform_(0.5, 2)
    return model.eval()


def run(model: Any, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and gradients, on the CPU."""
    logits = model(image)
    logits.float().square().mean().backward()
    return logits.detach().float().cpu(), {name: x.grad.cpu() for name, x in model.named_parameters()}


def assert_close(ours: tuple[Tensor, dict[str, Tensor]], theirs: tuple[Tensor, dict[str, Tensor]]) -> None:
    assert (ours[0] - theirs[0]).abs().max() <= 1e-4 * theirs[0].abs().max()
    for name, x in theirs[1].items():
        assert (ours[1][name] - x).norm() <= 1e-3 * x.norm() + 1e-7, name


@pytest.mark.parametrize("backend", ["auto", *(name for name in BACKENDS if name != "cpu")])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_the_same_as_on_the_cpu(backend: str, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(net(), IMAGE)
    if backend != "auto" and (reason := BACKENDS[backend].why_not(torch.empty(1, 1, 1, device="cuda"))):
        pytest.skip(reason)
    monkeypatch.setattr(spatial_mix, "bi_wkv", partial(bi_wkv, backend=backend))
    assert_close(run(net().cuda().to(memory_format=layout), IMAGE.cuda().to(memory_format=layout)), expected)


@pytest.mark.slow
def test_compiled_as_one_graph() -> None:
    torch.compiler.reset()
    assert_close(run(torch.compile(net().cuda(), fullgraph=True), IMAGE.cuda()), run(net(), IMAGE))


@pytest.mark.parametrize("name", ["rwkv_unet_t", "rwkv_unet_s", "rwkv_unet_b"])
def test_logits_in_bfloat16(name: str) -> None:
    model, image = net(name).cuda(), IMAGE.cuda()
    with torch.no_grad():
        expected = model(image)
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(image)
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - expected).pow(2).mean().sqrt() < BF16 * expected.abs().max()


def test_a_training_step_in_a_cuda_graph() -> None:
    model, image = net().cuda(), IMAGE.cuda()
    expected = run(model, image)
    graphed = torch.cuda.make_graphed_callables(net().cuda(), (image,))
    assert_close(run(graphed, image), expected)
