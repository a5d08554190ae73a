"""A step that was not finite, once more and watched: where the first value comes from that is NaN or infinite.

On one worker, in this process; the micro-batches are those that the workers had, so that batch norm sees the same.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rwkv_jobs import finetune, pretrain
from rwkv_jobs.epochs import train_loader
from rwkv_jobs.failed_step import FOLDER, read
from rwkv_jobs.form import TrainingForm
from rwkv_jobs.stepper import Stepper
from rwkv_jobs.training_loop import Objective
from rwkv_jobs.worker import Worker, pick_device, set_arithmetic
from rwkvctl.base.errors import UserError
from rwkvctl.base.uris import mask
from rwkvctl.config.specs.jobs import FinetuneSpec, PretrainSpec
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.models import build as networks
from rwkvctl.runs import folder as run_folder
from rwkvctl.runs import mirror
from rwkvctl.training.checkpoint import Position
from rwkvctl.training.optimizer import make_optimizer


def main() -> None:
    """`python -m rwkv_jobs.replay RUN_FOLDER`."""
    try:
        print("\n".join(replay(Path(sys.argv[1]))))
    except UserError as error:
        print(f"error: {mask(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)


def replay(run_dir: Path) -> list[str]:
    """Repeat the step that the run has kept, with anomaly detection on; what was found, a line each."""
    mirror.pull(run_dir, f"{FOLDER}/")
    failed, spec = read(run_dir), run_folder.read_spec(run_dir)
    assert isinstance(spec, FinetuneSpec | PretrainSpec)
    spec = on_one_worker(spec, failed["world_size"])
    me = Worker(0, 1, pick_device())
    set_arithmetic(spec.train.deterministic, me.device)
    manifest = Manifest.load(spec.data.path or "")
    loader = train_loader(spec, spec.augment, manifest, me)
    batch = next(iter(loader.epoch(failed["epoch"], failed["consumed"])))
    if batch.keys != failed["samples"]:
        raise UserError(f"run {run_dir.name}: the data at {spec.data.path} are not those of the step; restore them")
    model = networks.channels_last(network(spec, manifest).to(me.device))
    model.load_state_dict(load_file(run_dir / FOLDER / "model.safetensors"))
    form = TrainingForm(model, spec, me)
    stepper = Stepper(
        spec, me, form, make_optimizer(model, spec.optimizer), loader.steps_per_epoch, Position(), lambda text: None
    )
    objective: Objective
    if isinstance(spec, FinetuneSpec):
        finetune.prepare_epoch(spec, form, Position(epoch=failed["epoch"]))
        objective = finetune.Objective(spec, manifest, me, form, loader.steps_per_epoch)
    else:
        model.train()
        objective = pretrain.Objective(spec, me, form)
    loss_of = objective.of(batch, failed["step"], stepper.parts)
    said = [
        f"step {failed['step'] + 1}, in epoch {failed['epoch'] + 1}, on {me.device} in {spec.train.precision}; "
        f"{failed['reason']} was not finite",
        f"samples: {', '.join(batch.keys)}",
    ]
    with watched(model) as found:
        try:
            loss = stepper.gradients(loss_of, failed["step"], objective.linear)
        except RuntimeError as error:
            if "returned nan values" not in str(error):
                raise
            return [*said, *found, f"backward: {str(error).splitlines()[0]}"]
    return [*said, *found, *outcome(model, loss)]


def on_one_worker(spec: Any, world_size: int) -> Any:
    """The spec with all micro-batches on one worker; those of a round are one, where batch norm saw them together."""
    own = spec.train.micro_batch or spec.train.batch_size // world_size
    together = own * world_size
    if spec.train.batch_norm == "sync" and spec.train.batch_size % together == 0:
        own = together
    train = spec.train.model_copy(update={"micro_batch": own, "batch_norm": "local", "compile": False})
    alone = spec.cluster.model_copy(update={"workers": 1, "launcher": "process", "address": None})
    data = spec.data.model_copy(update={"workers": 0})
    return spec.model_copy(update={"train": train, "cluster": alone, "data": data})


def network(spec: FinetuneSpec | PretrainSpec, manifest: Manifest) -> nn.Module:
    if isinstance(spec, FinetuneSpec):
        return networks.segmentation_network(networks.trained(spec), manifest.classes, manifest.channels)
    return networks.classifier(spec.model, manifest.classes)


@contextmanager
def watched(model: nn.Module) -> Iterator[list[str]]:
    """Notes the first layer whose output is not finite though its input is; autograd checks the backward pass."""
    found: list[str] = []

    def look(name: str, inputs: tuple[Any, ...], output: Any) -> None:
        if not found and not finite(output) and finite(inputs):
            found.append(f"forward: the output of {name or 'the network'} is the first that is not finite")

    hooks = [
        module.register_forward_hook(lambda _, inputs, output, name=name: look(name, inputs, output))
        for name, module in model.named_modules()
        if not list(module.children())
    ]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is slow, and the traceback of what autograd then raises
            with torch.autograd.detect_anomaly(check_nan=True):
                yield found
    finally:
        for hook in hooks:
            hook.remove()


def finite(value: Any) -> bool:
    """Whether all tensors of what a layer takes or gives are finite."""
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    return all(map(finite, value)) if isinstance(value, tuple | list) else True


def outcome(model: nn.Module, loss: Tensor) -> list[str]:
    """Loss and gradients of a step that came to its end."""
    lines = [f"loss {loss.item():.6g}"]
    largest = max((float(w.detach().abs().max()), name) for name, w in model.named_parameters())
    lines.append(f"largest weight {largest[0]:.3g}, of {largest[1]}")
    bad = [name for name, w in model.named_parameters() if w.grad is not None and not finite(w.grad)]
    if bad:
        lines.append(f"gradients of {len(bad)} parameters are not finite, first {bad[0]}")
    elif finite(loss):
        lines.append("loss and gradients are finite here: it was the other device, or what is done only there")
    return lines


if __name__ == "__main__":
    main()
