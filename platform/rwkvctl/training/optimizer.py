"""The optimiser of a training job, and its learning rate by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.optim import create_optimizer_v2, list_optimizers, param_groups_layer_decay
from torch import nn
from torch.optim import Optimizer

from rwkvctl.base.errors import UserError
from rwkvctl.base.suggestions import did_you_mean
from rwkvctl.config.specs.jobs import TrainingSpec
from rwkvctl.config.specs.parts import OptimizerSpec
from rwkvctl.training.schedules import learning_rates

FUSED = ("adam", "adamw")
"""Optimisers of torch that update all weights in one kernel on a GPU."""


def make_optimizer(model: nn.Module, spec: OptimizerSpec) -> Optimizer:
    """The optimiser by its timm name, without weight decay on norms and biases."""
    on_gpu = next(model.parameters()).device.type == "cuda"
    options: dict[str, Any] = {"fused": True} if on_gpu and spec.name in FUSED else {}
    if spec.layer_decay is None:
        return create_optimizer_v2(model, opt=spec.name, lr=spec.lr, weight_decay=spec.weight_decay, **options)
    groups = layer_groups(model, spec)
    return create_optimizer_v2(groups, opt=spec.name, lr=spec.lr, weight_decay=0.0, **options)


def check(model: nn.Module, spec: OptimizerSpec) -> None:
    """UserError for a name that timm does not know, or layers that it cannot tell apart."""
    names = [str(name) for name in list_optimizers()]
    if spec.name not in names:
        raise UserError(f"optimizer.name: timm has no optimizer {spec.name!r}; {did_you_mean(spec.name, names)}")
    if spec.layer_decay is not None and keeps_its_encoder(model):
        raise UserError("optimizer.layer_decay: this network keeps its encoder's weights; set it to null")
    if spec.layer_decay is not None and len({group["lr_scale"] for group in layer_groups(model, spec)}) < 3:
        raise UserError("optimizer.layer_decay: timm cannot tell the layers of this encoder apart; set it to null")


def layer_groups(model: nn.Module, spec: OptimizerSpec) -> list[dict[str, Any]]:
    """Parameter groups whose `lr_scale` falls from the encoder's last layer to its first; what comes after has 1."""
    encoder: Any = encoder_of(model)
    of_classifier = encoder is None
    encoder = model if of_classifier else encoder
    assert spec.layer_decay is not None
    groups: list[dict[str, Any]] = param_groups_layer_decay(
        encoder, spec.weight_decay, not_weights(encoder), layer_decay=spec.layer_decay
    )
    if of_classifier:  # whose last layer is its head
        return groups
    for group in groups:
        group["lr_scale"] *= spec.layer_decay
    own, plain = {id(parameter) for parameter in encoder.parameters()}, not_weights(model)
    behind = [(name, x) for name, x in model.named_parameters() if id(x) not in own]
    weights = [x for name, x in behind if x.ndim > 1 and name not in plain]
    others = [x for name, x in behind if x.ndim <= 1 or name in plain]
    decays = [(weights, spec.weight_decay), (others, 0.0)]
    return groups + [{"params": x, "weight_decay": decay, "lr_scale": 1.0} for x, decay in decays if x]


def encoder_of(model: nn.Module) -> nn.Module | None:
    """The part of a segmentation network that may be pretrained, if it has one."""
    network = getattr(model, "network", model)  # those of other libraries are wrapped
    encoder = getattr(network, "encoder", None)
    return encoder if isinstance(encoder, nn.Module) else None


def keeps_its_encoder(model: nn.Module) -> bool:
    """Whether the network itself leaves every weight of its encoder as it is (SAMed)."""
    weights = list(encoder.parameters()) if (encoder := encoder_of(model)) is not None else []
    return bool(weights) and not any(x.requires_grad for x in weights)


def not_weights(model: Any) -> set[str]:
    """Names of the parameters that weight decay leaves alone."""
    return set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()


def base_rate(spec: TrainingSpec) -> float:
    """The learning rate for this batch size."""
    reference = spec.optimizer.lr_reference_batch
    return spec.optimizer.lr * (spec.train.batch_size / reference if reference else 1)


def make_schedule(spec: TrainingSpec, steps_per_epoch: int) -> Callable[[int], float]:
    """The learning rate by global step."""
    return learning_rates(spec.optimizer, lr=base_rate(spec), epochs=spec.train.epochs, steps_per_epoch=steps_per_epoch)
