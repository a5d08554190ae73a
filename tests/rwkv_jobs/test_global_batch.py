"""A step's loss and gradient are those of the global batch, however many workers or micro-batches share it."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rwkv_jobs import finetune, pretrain
from rwkv_jobs.epochs import train_loader
from rwkv_jobs.form import TrainingForm
from rwkv_jobs.stepper import Stepper
from rwkv_jobs.worker import Worker, worker
from rwkvctl.config.specs.jobs import JOBS, FinetuneSpec, PretrainSpec
from rwkvctl.config.specs.load import build, merge, parse_assignments, read_recipe
from rwkvctl.config.specs.parts import ClusterSpec
from rwkvctl.data.feed.samples import Batch
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.models.plan_volumes import planned
from rwkvctl.training.checkpoint import Position
from rwkvctl.training.losses import segmentation_loss
from rwkvctl.training.optimizer import make_optimizer

from .conftest import PATIENCE, Jobs, job_of, server
from .test_interruptions import free_port

STEPS = 20
FEW = 5
"""Steps where many would only repeat what they show."""
KINDS = ["finetune", "cervix", "pretrain", "volumes"]  # cervix is semi-supervised
FIELDS = ["train.batch_size=8", "train.precision=fp32", "optimizer.lr=1e-5", "optimizer.warmup_epochs=0"]
IGNORED = 255
Found = dict[str, Tensor]


def spoiled(batch: Batch) -> Batch:
    """By its key, an image is all foreground, half ignored, all background or as it was; one class is nowhere."""
    targets = batch.targets.clone()
    targets[targets == 2] = 1
    for target, key in zip(targets, batch.keys, strict=True):
        match sum(key.encode()) % 4:
            case 0:
                target[:] = 1
            case 1:
                target[: len(target) // 2] = IGNORED
            case 2:
                target[:] = 0
    return batch._replace(targets=targets)


class InDouble(nn.Module):
    """A network in float64 behind the feed's float32."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network.double()

    def forward(self, x: Tensor) -> Any:
        return self.network(x.double())

    def combined(self, maps: list[Tensor]) -> Tensor:
        """Of a network with logits at several scales."""
        return self.network.combined(maps)  # type: ignore[operator, no-any-return]


def steps_of(spec: FinetuneSpec | PretrainSpec, me: Worker, dtype: torch.dtype, steps: int) -> Found:
    """The losses of some steps, and the weights after them."""
    manifest = Manifest.load(str(spec.data.path))
    if isinstance(spec, FinetuneSpec):
        model = finetune.make_model(spec, manifest, Path("nowhere"))
    else:
        model = pretrain.make_model(spec, manifest, Path("nowhere"))
    if dtype == torch.float64:
        model = InDouble(model)
    loader = train_loader(spec, spec.augment, manifest, me)
    form = TrainingForm(model, spec, me)
    optimizer = make_optimizer(model, spec.optimizer)
    stepper = Stepper(spec, me, form, optimizer, loader.steps_per_epoch, Position(), print)
    losses = []
    model.train()
    if isinstance(spec, FinetuneSpec):
        objective = finetune.Objective(spec, manifest, me, form, loader.steps_per_epoch)
        objective.ignore_index = IGNORED
    for step in range(steps):
        epoch, within = divmod(step, loader.steps_per_epoch)
        batch = next(loader.epoch(epoch, within * spec.train.batch_size))
        if isinstance(spec, FinetuneSpec):
            stepper.step(objective.of(spoiled(batch), step, stepper.parts), step, linear=False)
        else:
            stepper.step(pretrain.Objective(spec, me, form).of(batch, step, stepper.parts), step, linear=True)
        losses.append(stepper.metrics()["train/loss"])
    state = {name.removeprefix("network."): x for name, x in model.state_dict().items()}
    return {"losses": torch.tensor(losses, dtype=torch.float64), **state}


def rank_of_a_group(
    environment: dict[str, str], specs: dict[str, Any], dtype: torch.dtype, steps: int, out: str
) -> None:
    os.environ.update(environment)
    with worker(ClusterSpec(launcher="process")) as me:
        torch.save({kind: steps_of(spec, me, dtype, steps) for kind, spec in specs.items()}, f"{out}.{me.rank}")


@pytest.fixture
def specs(shards: Path) -> Callable[..., dict[str, Any]]:
    """A small job of every kind."""

    def make(*fields: str, kinds: list[str] = KINDS) -> dict[str, Any]:
        jobs, found = Jobs(shards, Path("nowhere")), {}
        for kind in kinds:
            recipe, own = jobs.settings(kind, "model.drop_path=0", *FIELDS, *fields)
            semi = ["consistency.batch_size=8"] if kind == "cervix" else []
            assignments = parse_assignments([*own, *semi])
            spec = build(JOBS[job_of(kind)], merge(read_recipe(recipe), assignments), recipe)
            found[kind] = planned(spec, Manifest.load(spec.data.path)) if isinstance(spec, FinetuneSpec) else spec
        return found

    return make


@pytest.fixture
def in_a_group(tmp_path: Path, children: list[Any]) -> Callable[..., list[dict[str, Found]]]:
    """What every rank of so many workers finds."""

    def run(workers: int, specs: dict[str, Any], dtype: torch.dtype, steps: int = STEPS) -> list[dict[str, Found]]:
        group = {"WORLD_SIZE": str(workers), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        for rank in range(workers):
            arguments = (group | {"RANK": str(rank)}, specs, dtype, steps, str(tmp_path / "steps"))
            children.append(process := server().Process(target=rank_of_a_group, args=arguments))
            process.start()
        for process in children:
            process.join(PATIENCE)
            assert process.exitcode == 0
        return [torch.load(tmp_path / f"steps.{rank}", weights_only=True) for rank in range(workers)]

    return run


def alone(specs: dict[str, Any], dtype: torch.dtype, steps: int = STEPS) -> dict[str, Found]:
    return _alone(tuple((kind, spec.model_dump_json()) for kind, spec in specs.items()), dtype, steps)


@cache
def _alone(specs: tuple[tuple[str, str], ...], dtype: torch.dtype, steps: int) -> dict[str, Found]:
    me = Worker(0, 1, torch.device("cpu"))
    return {kind: steps_of(JOBS[job_of(kind)].model_validate_json(spec), me, dtype, steps) for kind, spec in specs}


def furthest(found: Found, expected: Found) -> tuple[float, float]:
    """The largest difference of a loss, and of a weight or a running statistic."""
    assert found.keys() == expected.keys()
    apart = {name: float((found[name].double() - expected[name].double()).abs().max()) for name in expected}
    return apart.pop("losses"), max(apart.values())


def trained(found: Found) -> Found:
    """Without the running statistics, which are of the micro-batches that a worker has seen."""
    return {name: x for name, x in found.items() if not name.endswith(("running_mean", "running_var", "_tracked"))}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
def test_training_does_not_depend_on_the_number_of_workers(specs: Any, in_a_group: Any, workers: int):
    """With batch norm over all workers; alone, it is torch's own."""
    of, steps = specs("train.batch_norm=sync"), STEPS if workers == 4 else FEW
    expected = alone(of, torch.float64, steps)
    for found in in_a_group(workers, of, torch.float64, steps):
        for kind in KINDS:
            loss, weight = furthest(found[kind], expected[kind])
            print(f"{workers} workers, {kind}: losses within {loss:.1e}, weights within {weight:.1e}")
            assert max(loss, weight) < 1e-10, kind


@pytest.mark.slow
def test_in_float32_two_workers_are_as_near_to_one_as_one_is_to_itself(
    specs: Any, in_a_group: Any, monkeypatch: pytest.MonkeyPatch
):
    """With the images of its batch in another order: AdamW makes large steps out of the last bit of small gradients."""
    of = specs("train.batch_norm=sync")
    expected = alone(of, torch.float32)
    [found, *_] = in_a_group(2, of, torch.float32)
    in_order = spoiled
    monkeypatch.setitem(globals(), "spoiled", lambda batch: backwards(in_order(batch)))
    _alone.cache_clear()
    reordered = alone(of, torch.float32)
    for kind in ("finetune", "cervix"):
        loss, weight = furthest(found[kind], expected[kind])
        floor = furthest(reordered[kind], expected[kind])
        print(f"{kind}: losses within {loss:.1e} ({floor[0]:.1e}), weights within {weight:.1e} ({floor[1]:.1e})")
        assert loss < 10 * floor[0], kind
        assert weight < 10 * floor[1], kind


def backwards(batch: Batch) -> Batch:
    return Batch(batch.images.flip(0), batch.targets.flip(0), batch.keys[::-1])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 3])
def test_micro_batches_of_one_size_are_the_same_on_any_number_of_workers(specs: Any, in_a_group: Any, workers: int):
    """Four of two images, also where three workers cannot share them evenly; with batch norm of each micro-batch, and
    what is random in the network."""
    fields = ["train.batch_norm=local", "train.micro_batch=2", "model.drop_path=0.2"]
    expected = alone(specs(*fields), torch.float64, FEW)
    for found in in_a_group(workers, specs(*fields), torch.float64, FEW):
        for kind in KINDS:
            assert max(furthest(trained(found[kind]), trained(expected[kind]))) < 1e-10, kind


@pytest.mark.slow
def test_batch_norm_over_all_workers_with_uneven_micro_batches(specs: Any, in_a_group: Any):
    """Two of three workers have nothing to do in the last round; all end with the same weights."""
    found = in_a_group(3, specs("train.batch_norm=sync", "train.micro_batch=2", kinds=["finetune"]), torch.float32, FEW)
    weights = [trained(one["finetune"]) for one in found]
    assert furthest(weights[1], weights[0]) == furthest(weights[2], weights[0]) == (0.0, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_batch_norm_matters(specs: Any, kind: str):
    """The tests above would not pass with statistics of other images."""
    whole, parts = (
        alone(specs(*fields, kinds=[kind]), torch.float64, FEW)[kind] for fields in ([], ["train.micro_batch=2"])
    )
    assert furthest(whole, parts)[0] > 1e-4


def test_micro_batches_give_the_gradient_of_the_whole_batch(specs: Any):
    """Dice is no mean over images; without batch norm, nothing but the memory tells them apart."""
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(8, 3, 8, 8, dtype=torch.float64, generator=generator)
    target = torch.randint(0, 3, (8, 8, 8), generator=generator)
    target[0], target[1, :4], target[2] = 1, IGNORED, 0

    def three_steps(*fields: str) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 4, 1)).double()
        spec, me = specs(*fields, kinds=["finetune"])["finetune"], Worker(0, 1, torch.device("cpu"))
        form = TrainingForm(model, spec, me)
        stepper = Stepper(spec, me, form, make_optimizer(model, spec.optimizer), 10, Position(), print)

        def loss_of(part: int, total: Any) -> Tensor:
            own = slice(part * 8 // stepper.parts, (part + 1) * 8 // stepper.parts)
            return segmentation_loss(form(images[own]), target[own], alpha=0.4, beta=0.6, total=total)

        for step in range(3):
            stepper.step(loss_of, step, linear=False)
        return [stepper.loss, *model.parameters()]

    for found, expected in zip(three_steps("train.micro_batch=2"), three_steps(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "network"), [("sum", "pvt_cascade"), ("mutation", "emcad")])
def test_deep_supervision_does_not_depend_on_the_number_of_workers(specs: Any, in_a_group: Any, how: str, network: str):
    """Of labeled and unlabeled images. AdamW makes more of the last bits here: weights agree to 1/1000 of a step."""
    fields = ["train.batch_norm=sync", f"model.name={network}", "model.encoder=pvt_v2_b0", f"deep_supervision={how}"]
    of = specs(*fields, kinds=["cervix"])
    expected = alone(of, torch.float64, steps=3)
    for found in in_a_group(2, of, torch.float64, steps=3):
        loss, weight = furthest(found["cervix"], expected["cervix"])
        print(f"{how}: losses within {loss:.1e}, weights within {weight:.1e}")
        assert loss < 1e-10
        assert weight < 1e-3 * 1e-5


class TwoScales(nn.Module):
    """Logits at two scales, without batch norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GELU()).double()
        self.heads = nn.ModuleList(nn.Conv2d(8, 4, 1) for _ in range(2)).double()

    def forward(self, x: Tensor) -> list[Tensor]:
        return [head(self.body(x.double())) for head in self.heads]

    @staticmethod
    def combined(maps: list[Tensor]) -> Tensor:
        return maps[-1]


@pytest.mark.parametrize("how", ["sum", "mutation"])
def test_deep_supervision_of_micro_batches_is_that_of_the_whole_batch(
    specs: Any, how: str, monkeypatch: pytest.MonkeyPatch
):
    """Of labeled images and of unlabeled ones, whose consistency is of the logits that are evaluated; compiled too."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    me, found = Worker(0, 1, torch.device("cpu")), []
    for fields in ([], ["train.micro_batch=2"], ["train.micro_batch=2", "train.compile=true"]):
        spec = specs(f"deep_supervision={how}", *fields, kinds=["cervix"])["cervix"]
        manifest = Manifest.load(str(spec.data.path))
        form = TrainingForm(model := TwoScales(), spec, me)
        loader = train_loader(spec, spec.augment, manifest, me)
        objective = finetune.Objective(spec, manifest, me, form, loader.steps_per_epoch)
        stepper = Stepper(spec, me, form, make_optimizer(model, spec.optimizer), 10, Position(), print)
        loss = stepper.gradients(objective.of(next(loader.epoch(0, 0)), 0, stepper.parts), 0, linear=False)
        found.append([loss, *(weight.grad for weight in model.parameters())])
    for whole, *others in zip(*found, strict=True):
        for parts in others:
            torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-12)
