"""What holds for every model by name and every ablation; one that is registered joins by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rwkv_unet import create_model, list_models
from rwkv_unet.flops import count_parameters

SMALL = {"stem_dim": 8, "depths": (1, 1, 2, 1), "dims": (8, 12, 16, 24), "expansions": (2.0, 2.0, 2.0, 2.0)}
ABLATIONS: list[dict[str, Any]] = [
    *({"attention": attention} for attention in ("spatial_mix_2d", "mhsa", "focused_linear", "bi_mamba", "none")),
    {"shallow_attention": True, "depths": (1, 2, 1, 1)},
    {"glsp_channel_mix": True},
    {"num_skips": 1},
    {"encoder": "convnext_atto"},
]
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in list_models(examples=True)),
    *(("rwkv_unet_t", {**SMALL, **ablation}) for ablation in ABLATIONS),
    *(("rwkv_unet_3d_t", {**SMALL, "flat_stages": flat, "num_skips": skips}) for flat, skips in ((0, 3), (2, 1))),
]
LARGER = ("rwkv_unet_t", "rwkv_unet_s", "rwkv_unet_b", "rwkv_unet_3d_t", "rolling_unet_m", "rolling_unet_l", "unext")
"""The modules of a smaller one, which is traced in their place."""
TRACED = [(name, overrides) for name, overrides in CASES if overrides or name not in LARGER]


def _label(overrides: dict[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in overrides.items() if SMALL.get(key) != value)


every_model = pytest.mark.parametrize(
    ("name", "overrides"), CASES, ids=lambda x: x if isinstance(x, str) else _label(x)
)
every_kind = pytest.mark.parametrize(
    ("name", "overrides"), TRACED, ids=lambda x: x if isinstance(x, str) else _label(x)
)


def make(name: str, overrides: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return create_model(name, num_classes=2, **overrides)


def images(model: Any, *times: int, batch: int = 1) -> Tensor:
    """Of 3 channels, the axes so many times the model's divisor: height and width, or depth too."""
    divisors = model.divisor if isinstance(model.divisor, tuple) else (model.divisor, model.divisor)
    return torch.randn(batch, 3, *(a * b for a, b in zip(divisors, times[-len(divisors) :], strict=True)))


@every_model
def test_shapes_determinism_and_state(name: str, overrides: dict[str, Any]) -> None:
    model, again = make(name, overrides).eval(), make(name, overrides).eval()
    with torch.no_grad():
        for x in (images(model, 2, 1, 3), images(model, 1, 2, 1, batch=2)):
            y = model(x)
            assert y.shape == (len(x), 2, *x.shape[2:])
            assert y.isfinite().all()
            assert torch.equal(model(x), y)
        again.load_state_dict({key: torch.zeros_like(value) for key, value in model.state_dict().items()})
        again.load_state_dict(model.state_dict())
        assert torch.equal(again(x), y)


@every_model
def test_every_parameter_gets_a_finite_gradient(name: str, overrides: dict[str, Any]) -> None:
    model = make(name, overrides).train()
    logits = model(images(model, 1, 2, 1, batch=2))
    (logits * torch.randn_like(logits)).mean().backward()
    for key, x in model.named_parameters():
        assert (x.grad is not None) == x.requires_grad, key
        assert x.grad is None or x.grad.isfinite().all(), key


@every_kind
def test_sizes_that_do_not_fit_are_refused_with_one_that_does(name: str, overrides: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = make(name, overrides)
        x = images(model, 1, 1, 1)
        with pytest.raises(ValueError, match=r"is not divisible by .*; the next that works is"):
            model(torch.cat([x, x[..., :1]], dim=-1))
        with pytest.raises(ValueError, match="channels, not 5"):
            model(x.expand(1, 5, *x.shape[2:]) if x.shape[1] == 1 else torch.cat([x, x[:, :2]], dim=1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@every_kind
def test_compiles_as_one_graph(name: str, overrides: dict[str, Any]) -> None:
    model = make(name, overrides).eval()
    if name.startswith(("smp:", "monai:")) or count_parameters(model) > 30e6:
        pytest.skip("not ours to mend, or long: its export is traced all the same")
    x = images(model, 1, 2, 1)
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the tracer's own
@every_kind
def test_exports(name: str, overrides: dict[str, Any]) -> None:
    model = make(name, overrides).eval()
    x = images(model, 1, 2, 1)
    with torch.no_grad():
        program = torch.export.export(model, (x,))
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)
