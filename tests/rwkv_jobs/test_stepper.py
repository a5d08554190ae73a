"""Optimiser steps, one at a time: what is not finite, what is frozen, at which rate a layer learns."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rwkv_jobs.finetune import prepare_epoch
from rwkv_jobs.form import TrainingForm
from rwkv_jobs.stepper import MOST_SKIPPED, NotFinite, Stepper
from rwkv_jobs.worker import Worker
from rwkv_unet import create_model
from rwkvctl.base.errors import UserError
from rwkvctl.config.specs.jobs import FinetuneSpec
from rwkvctl.training import optimizer
from rwkvctl.training.checkpoint import Position
from rwkvctl.training.losses import segmentation_loss

ALONE = Worker(0, 1, torch.device("cpu"))


def spec_of(**fields: Any) -> FinetuneSpec:
    train = {"epochs": 3, "batch_size": 4, "precision": "fp32", "batch_norm": "local"} | fields.pop("train", {})
    rates = {"lr": 1e-3, "schedule": "constant"} | fields.pop("optimizer", {})
    return FinetuneSpec.model_validate({"data": {"image_size": 32}, "train": train, "optimizer": rates, **fields})


class Training:
    """A network and what trains it on four images."""

    def __init__(self, spec: FinetuneSpec, model: nn.Module, position: Position | None = None):
        self.position, self.said = position or Position(), list[str]()
        self.form = TrainingForm(model, spec, ALONE)
        made = optimizer.make_optimizer(model, spec.optimizer)
        self.stepper = Stepper(spec, ALONE, self.form, made, 3, self.position, self.said.append)
        generator = torch.Generator().manual_seed(1)
        self.images = torch.randn(4, 3, 32, 32, generator=generator)
        self.target = torch.randint(0, 3, (4, 32, 32), generator=generator)

    def step(self, number: int, factor: float = 1.0) -> None:
        def loss_of(part: int, total: Callable[[Tensor], Tensor]) -> Tensor:
            loss = segmentation_loss(self.form(self.images), self.target, alpha=0.5, beta=0.5, total=total)
            return loss * factor

        self.stepper.step(loss_of, number, linear=False)

    def weights(self) -> dict[str, Tensor]:
        return {name: x.detach().clone() for name, x in self.form.model.named_parameters()}


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 3, 1))


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("what", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_stops_before_its_update(what: float):
    training = Training(spec_of(), small())
    training.step(0)
    before, moments = training.weights(), copy.deepcopy(training.stepper.optimizer.state_dict()["state"])
    with pytest.raises(
        NotFinite, match=r"^step 2: the loss is not finite; start a new run with optimizer.lr below 0.001"
    ):
        training.step(1, what)
    assert same(training.weights(), before)
    after = training.stepper.optimizer.state_dict()["state"]
    assert all(torch.equal(moments[key][name], after[key][name]) for key in moments for name in moments[key])


def test_or_its_update_is_skipped_and_said():
    training = Training(spec_of(train={"on_nan": "skip"}), small())
    training.step(0)
    before = training.weights()
    training.step(1, float("nan"))
    assert same(training.weights(), before)
    assert training.said == ["step 2: the loss is not finite; its update is skipped"]
    training.step(2)
    assert not same(training.weights(), before)
    assert len(training.said) == 1


def test_but_not_for_ever():
    training = Training(spec_of(train={"on_nan": "skip"}), small())
    for number in range(MOST_SKIPPED - 1):
        training.step(number, float("nan"))
    with pytest.raises(NotFinite, match=r"^step 10: "):
        training.step(MOST_SKIPPED - 1, float("nan"))


def test_a_weight_that_is_not_finite_is_noticed_before_the_next_update(monkeypatch: pytest.MonkeyPatch):
    training = Training(spec_of(), model := small())
    overflow = lambda: next(model.parameters()).data.view(-1)[:1].fill_(float("inf"))  # noqa: E731
    monkeypatch.setattr(training.stepper.optimizer, "step", overflow)
    training.step(0)
    with pytest.raises(NotFinite, match=r"^step 1: a weight is not finite"):
        training.step(1)


def test_a_skipped_step_leaves_no_trace_in_batch_norm():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 3, 1))
    training = Training(spec_of(train={"on_nan": "skip"}), model)
    training.step(0)
    before = {name: x.clone() for name, x in model.state_dict().items() if "running" in name}
    whole, training.images = training.images, training.images * float("nan")
    training.step(1)
    assert same(before, model.state_dict())
    training.images = whole
    training.step(2)
    assert not same(before, model.state_dict())
    assert all(x.isfinite().all() for x in model.state_dict().values())


class HostReads(TorchDispatchMode):
    """Counts what would make a host wait for its GPU."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("on_nan", ["stop", "skip"])
def test_a_step_does_not_wait_for_a_gpu(on_nan: str):
    """As on one: with an optimiser that is told on the device to leave out an update, read when it is logged."""
    spec = spec_of(train={"on_nan": on_nan}, optimizer={"clip_grad": 1.0})
    training = Training(spec, model := small())
    training.stepper.looks_at_once = False
    training.stepper.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    with HostReads() as reads:
        training.step(0)
        before = training.weights()
        training.step(1, float("nan"))
        bad = training.weights()
        training.step(2)
    assert reads.count == 0
    assert same(bad, before)
    assert same(training.weights(), before) == (on_nan == "stop")
    if on_nan == "stop":
        with pytest.raises(NotFinite, match=r"^step 2: the loss is not finite"):
            training.stepper.check_finite()
    else:
        assert not training.stepper.check_finite()
        assert training.said == ["step 2: the loss is not finite; its update is skipped"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_step_on_a_gpu_does_not_wait_for_it():
    """torch raises where the host would wait."""
    gpu = Worker(0, 1, torch.device("cuda"))
    spec = spec_of()
    model = create_model("rwkv_unet_xt", num_classes=3).cuda()
    form = TrainingForm(model, spec, gpu)
    stepper = Stepper(spec, gpu, form, optimizer.make_optimizer(model, spec.optimizer), 3, Position(), print)
    images = torch.randn(4, 3, 32, 32, device="cuda")
    target = torch.randint(0, 3, (4, 32, 32), device="cuda")

    def loss_of(part: int, total: Callable[[Tensor], Tensor]) -> Tensor:
        return segmentation_loss(form(images), target, alpha=0.5, beta=0.5, total=total)

    stepper.step(loss_of, 0, linear=False)  # compiles kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(1, 4):
            stepper.step(loss_of, number, linear=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert stepper.check_finite()


def test_the_scale_of_fp16_falls_and_is_kept():
    """Too large a scale makes gradients infinite: that update alone is left out, and the next step scales less."""
    spec = spec_of(train={"precision": "fp16"})
    training = Training(spec, small())
    first = training.stepper.scaler.get_scale()
    before = training.weights()
    training.step(0, 1e36)  # the loss is finite, the scaled one overflows
    assert same(training.weights(), before)
    assert training.stepper.scaler.get_scale() == first / 2
    training.stepper.check_finite()
    resumed = Training(spec, small(), Position(**copy.deepcopy(vars(training.position))))
    assert resumed.stepper.scaler.get_scale() == first / 2
    training.step(1)
    assert not same(training.weights(), before)


def test_a_frozen_encoder_keeps_weights_and_statistics_and_then_learns():
    torch.manual_seed(0)
    spec = spec_of(freeze_encoder=1)
    training = Training(spec, create_model("rwkv_unet_xt", num_classes=3))
    encoder = optimizer.encoder_of(training.form.model)
    assert encoder is not None
    before = {name: x.clone() for name, x in encoder.state_dict().items()}
    prepare_epoch(spec, training.form, Position(epoch=0))
    training.step(0)
    assert same(before, encoder.state_dict())
    assert not same(training.weights(), dict(create_model("rwkv_unet_xt", num_classes=3).named_parameters()))
    prepare_epoch(spec, training.form, Position(epoch=1))
    training.step(1)
    assert not same(before, encoder.state_dict())


def test_layers_of_an_encoder_learn_the_slower_the_further_from_the_decoder():
    model = create_model("rwkv_unet_xt", num_classes=3)
    spec = spec_of(optimizer={"layer_decay": 0.5})
    training = Training(spec, model)
    training.step(0)
    rate = {
        id(parameter): group["lr"] for group in training.stepper.optimizer.param_groups for parameter in group["params"]
    }
    rates = {name: rate[id(parameter)] for name, parameter in model.named_parameters()}
    assert len(rate) == len(rates)
    assert {value for name, value in rates.items() if not name.startswith("encoder.")} == {1e-3}
    assert max(value for name, value in rates.items() if name.startswith("encoder.")) == 5e-4
    by_depth = [rates[f"encoder.stages.{stage}.0.project.weight"] for stage in range(4)]
    assert by_depth == sorted(set(by_depth))
    assert rates[next(name for name in rates if name.startswith("encoder.stem"))] < by_depth[0]
    decays = {
        id(p): group["weight_decay"] for group in training.stepper.optimizer.param_groups for p in group["params"]
    }
    plain = optimizer.make_optimizer(model, spec_of().optimizer)
    expected = {id(p): group["weight_decay"] for group in plain.param_groups for p in group["params"]}
    assert decays == expected


def test_an_optimizer_that_timm_does_not_have():
    with pytest.raises(UserError, match=r"optimizer\.name: timm has no optimizer 'adamv'; did you mean adam "):
        optimizer.check(small(), spec_of(optimizer={"name": "adamv"}).optimizer)


def test_another_optimizer():
    training = Training(spec_of(optimizer={"name": "lion"}), small())
    training.step(0)
    assert type(training.stepper.optimizer).__name__ == "Lion"
