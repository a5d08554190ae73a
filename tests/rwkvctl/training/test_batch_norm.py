"""Batch norm over all workers; alone it must be torch's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from rwkvctl.training import batch_norm

NORMS = {
    "1d": (lambda: nn.BatchNorm1d(5), (6, 5)),
    "2d": (lambda: nn.BatchNorm2d(5, eps=1e-3, momentum=0.3), (3, 5, 4, 6)),
    "3d": (lambda: nn.BatchNorm3d(5), (2, 5, 3, 4, 2)),
    "mean of all": (lambda: nn.BatchNorm2d(5, momentum=None), (3, 5, 4, 6)),
    "no weights": (lambda: nn.BatchNorm2d(5, affine=False), (3, 5, 4, 6)),
    "no statistics": (lambda: nn.BatchNorm2d(5, track_running_stats=False), (3, 5, 4, 6)),
    "timm's": (lambda: BatchNormAct2d(5, act_layer=nn.SiLU), (3, 5, 4, 6)),
}


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def passes(model: nn.Module, batches: list[Tensor]) -> list[Tensor]:
    """Outputs and gradients of some batches in training mode, the state after them, and what it gives then."""
    found = []
    for batch in batches:
        x = batch.clone().requires_grad_()
        out = model(x)
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)).sum().backward()
        assert x.grad is not None
        found += [out.detach(), x.grad]
    found += [p.grad for p in model.parameters() if p.grad is not None]
    found += list(model.state_dict().values())
    return [*found, model.eval()(batches[0]).detach()]


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_it_is_torchs_own_on_one_worker(group: None, name: str, dtype: torch.dtype):
    make, shape = NORMS[name]
    generator = torch.Generator().manual_seed(3)
    batches = [5 + torch.randn(shape, generator=generator, dtype=dtype) for _ in range(3)]
    plain = nn.Sequential(make()).to(dtype)
    other = nn.Sequential(make()).to(dtype)
    for parameter in [*plain.parameters(), *other.parameters()]:
        nn.init.uniform_(parameter, 0.5, 1.5, generator=torch.Generator().manual_seed(4))
    batch_norm.synchronise(other, torch.device("cpu"))
    assert isinstance(other[0], batch_norm.GlobalBatchNorm)
    assert list(other.state_dict()) == list(plain.state_dict())
    for found, expected in zip(passes(other, batches), passes(plain, batches), strict=True):
        torch.testing.assert_close(found, expected)


def test_parameters_are_the_same_objects_and_gradients_are_right(group: None):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4))).double()
    parameters = dict(model.named_parameters())
    batch_norm.synchronise(model, torch.device("cpu"))
    assert {name: id(p) for name, p in model.named_parameters()} == {name: id(p) for name, p in parameters.items()}
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, (x,))


def test_half_precision_is_computed_in_float32(group: None):
    model = nn.Sequential(nn.BatchNorm2d(2))
    batch_norm.synchronise(model, torch.device("cpu"))
    x = (100 + torch.randn(4, 2, 64, 64)).bfloat16()
    out = model(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float().var((0, 2, 3)), torch.ones(2), atol=0.02, rtol=0)
