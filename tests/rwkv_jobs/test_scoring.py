"""Cases in batches, read and scored by processes, have the scores of one case at a time."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rwkv_jobs import evaluate, scoring
from rwkv_jobs.case_scores import Scored, Scorers, Scoring
from rwkv_jobs.gallery import Gallery, KeptMasks, draw, mean_dsc
from rwkv_jobs.networks import Networks
from rwkv_jobs.worker import Worker
from rwkv_unet import create_model
from rwkvctl.base.errors import JobFailedError, UserError
from rwkvctl.config.specs.parts import DataSpec
from rwkvctl.data.feed import loader_processes
from rwkvctl.data.feed.cases import SliceLoader, case_reader, iter_cases
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.models import bundle
from rwkvctl.models.build import outputs
from rwkvctl.models.inference import segment_image
from rwkvctl.pictures.shown import slice_of
from rwkvctl.training import metrics

ME = Worker(0, 1, torch.device("cpu"))
SIDE = 32


class Watched(nn.Module):
    """A network that tells the sizes of its batches, and whether it ran under autocast."""

    def __init__(self, manifest: Manifest):
        super().__init__()
        torch.manual_seed(3)
        self.network = create_model("rwkv_unet_t", num_classes=outputs(manifest.classes), in_channels=manifest.channels)
        self.batches: list[int] = []
        self.autocast: set[bool] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        self.autocast.add(torch.is_autocast_enabled("cpu"))
        logits: Tensor = self.network(x)
        return logits


@pytest.fixture(params=["polyps", "hearts"])
def manifest(request: pytest.FixtureRequest, shards: Path) -> Manifest:
    return Manifest.load(shards / request.param)


@pytest.fixture
def model(manifest: Manifest) -> Watched:
    return Watched(manifest).eval()


def data(workers: int = 0) -> DataSpec:
    return DataSpec(image_size=SIDE, workers=workers)


def one_at_a_time(model: nn.Module, manifest: Manifest, part: str) -> dict[str, np.ndarray]:
    masks = {}
    for case in iter_cases(manifest, split=None, part=part):
        slices = case.image if case.mask.ndim == 3 else [case.image]
        found = [segment_image(model, one, image_size=SIDE, image_kind=manifest.image_kind) for one in slices]
        masks[case.key] = np.stack(found) if case.mask.ndim == 3 else found[0]
    return masks


def test_masks_of_batches_across_cases_are_those_of_single_slices(
    manifest: Manifest, model: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = one_at_a_time(model, manifest, "test")
    model.batches.clear()
    own = case_reader(manifest, split=None, part="test", rank=0, world_size=1)
    slices = SliceLoader(own, image_size=SIDE, batch=4, workers=0)
    found = {own.key(row): mask for row, mask in scoring.predict_cases(Networks([model]), slices, own, ME, "fp32")}
    assert list(found) == manifest.ids(None, "test")
    for key, mask in found.items():
        assert mask.dtype == np.uint8
        assert np.array_equal(mask, expected[key])
    total = sum(len(mask) if mask.ndim == 3 else 1 for mask in found.values())
    assert model.batches == [4] * (total // 4) + [total % 4] * (total % 4 > 0)


def test_processes_score_and_draw_as_this_one(
    manifest: Manifest, model: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "LITTLE_DATA", 0)
    monkeypatch.setitem(scoring.SLICES, "cpu", 4)
    monkeypatch.setattr(scoring, "available_cpus", lambda: 3)
    found = {}
    for workers in (0, 2):
        gallery = Gallery(tmp_path / str(workers), 1)
        found[workers] = scoring.score_cases(model, manifest, data(workers), "test", ME, hd95=True, gallery=gallery)
    assert not multiprocessing.active_children()
    assert found[2] == found[0]
    assert list(found[2].cases) == manifest.ids(None, "test")
    masks = one_at_a_time(model, manifest, "test")
    drawn = {}
    for case in iter_cases(manifest, split=None, part="test"):
        mask = masks[case.key]
        scores = metrics.score_case(
            mask, case.mask, len(manifest.classes), case.spacing_mm, ignore_index=manifest.ignore_index
        )
        assert found[2].cases[case.key] == scores
        shown = slice_of(case.key, case.image, case.mask, mask)
        drawn[mean_dsc(scores), case.key] = draw(shown, scores, manifest.classes)
    worst = min(drawn)
    for workers in (0, 2):
        [picture] = (tmp_path / str(workers)).iterdir()
        assert (picture.stem, picture.read_bytes()) == (worst[1], drawn[worst])


def test_the_worst_and_the_median_cases_are_chosen_among_all(tmp_path: Path) -> None:
    cases = {f"case{n}": [metrics.ClassScore(1, 0.0, None, n / 10)] for n in (5, 3, 9, 1, 0, 7, 8, 2, 6, 4)}
    chosen = Gallery(tmp_path, 3).choose(cases)
    assert chosen == (["case0", "case1", "case2"], ["case4", "case5"])
    few = {key: cases[key] for key in ("case5", "case0")}
    assert Gallery(tmp_path, 4).choose(few) == (["case0", "case5"], [])
    assert Gallery(tmp_path, 1).choose(few) == (["case0"], ["case5"])
    assert Gallery(tmp_path, 0).choose(cases) == ([], [])


def test_masks_are_kept_on_the_disk_until_they_are_needed() -> None:
    rng = np.random.default_rng(0)
    masks = [rng.integers(0, 3, shape).astype(np.uint8) for shape in ((4, 5), (3, 7, 6), (2, 2))]
    with closing(KeptMasks()) as kept:
        assert [row for row, _ in kept.keeping(iter(enumerate(masks)))] == [0, 1, 2]
        for row in (1, 0, 2):
            assert np.array_equal(kept.mask(row), masks[row])


@pytest.mark.parametrize("manifest", ["polyps"], indirect=True)
def test_autocast_is_that_of_the_training(manifest: Manifest, model: Watched) -> None:
    for precision, expected in (("fp32", False), ("auto", False), ("bf16", True)):
        model.autocast.clear()
        scoring.score_cases(model, manifest, data(), "test", ME, hd95=False, precision=precision)
        assert model.autocast == {expected}


@pytest.mark.parametrize(
    ("extra", "on_gpu"), [({"precision": "bf16"}, "bf16"), ({"precision": "fp32"}, "fp32"), ({}, "fp32")]
)
def test_a_model_is_evaluated_in_the_precision_of_its_training_on_a_gpu(extra: dict[str, str], on_gpu: str) -> None:
    info = bundle.BundleInfo(
        model={"name": "rwkv_unet_t"},
        classes=["a", "b"],
        image_size=32,
        image_kind="rgb8",
        channels=3,
        kind="segmentation",
        extra=extra,
    )
    assert evaluate.precision_of(info, torch.device("cuda")) == on_gpu
    assert evaluate.precision_of(info, torch.device("cpu")) == "fp32"


def predictions(manifest: Manifest, count: int = 9) -> Iterator[tuple[int, np.ndarray]]:
    own = case_reader(manifest, split=None, part="test", rank=0, world_size=1)
    for number in range(count):
        yield number % len(own), np.zeros_like(own.mask(number % len(own)))


@pytest.fixture
def rules(manifest: Manifest) -> Scoring:
    own = case_reader(manifest, split=None, part="test", rank=0, world_size=1)
    return Scoring(own, len(manifest.classes), manifest.ignore_index, hd95=False)


def score_each(rules: Scoring, predicted: Any, processes: int) -> Iterator[Scored]:
    with closing(Scorers(rules, processes)) as scorers:
        yield from scorers.each(predicted)


@pytest.mark.parametrize("manifest", ["hearts"], indirect=True)
def test_processes_stay_for_the_next_model(manifest: Manifest, model: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "LITTLE_DATA", 0)
    monkeypatch.setattr(scoring, "available_cpus", lambda: 3)
    other, seen = Watched(manifest).eval(), []
    for parameter in other.parameters():
        parameter.data.neg_()
    with closing(scoring.CaseScorer(manifest, data(1), "test", ME, hd95=False)) as scorer:
        assert not multiprocessing.active_children(), "none before they are needed"
        for one in (model, other, model):
            found = scorer.score(one)
            seen.append({child.pid for child in multiprocessing.active_children()})
            assert found == scoring.score_cases(one, manifest, data(), "test", ME, hd95=False)
    assert len(seen[0]) == 2
    assert seen == [seen[0]] * 3
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("manifest", ["hearts"], indirect=True)
def test_few_predictions_wait(manifest: Manifest, rules: Scoring) -> None:
    made, ended, most = 0, 0, 0

    def counted() -> Iterator[tuple[int, np.ndarray]]:
        nonlocal made, most
        for one in predictions(manifest):
            made += 1
            most = max(most, made - ended)
            yield one

    for case in score_each(rules, counted(), 1):
        assert case.key == rules.reader.key(ended % len(rules.reader))
        ended += 1
    assert (made, ended, most) == (9, 9, 2)


@pytest.mark.parametrize("processes", [0, 1])
@pytest.mark.parametrize("manifest", ["hearts"], indirect=True)
def test_a_mask_of_another_extent_is_one_line(manifest: Manifest, rules: Scoring, processes: int) -> None:
    wrong = [(0, np.zeros((3, 7, 7), np.uint8))]
    with pytest.raises(UserError, match=r"^acdc_p001_f01: image \(3, 7, 7\) and mask \(3, 32, 32\) differ") as caught:
        list(score_each(rules, wrong, processes))
    assert "\n" not in str(caught.value)
    assert not multiprocessing.active_children()


def kill_children() -> None:
    for child in multiprocessing.active_children():
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)


@pytest.mark.parametrize("manifest", ["hearts"], indirect=True)
def test_a_killed_process_is_one_line(manifest: Manifest, rules: Scoring, monkeypatch: pytest.MonkeyPatch) -> None:
    def killing() -> Iterator[tuple[int, np.ndarray]]:
        for number, one in enumerate(predictions(manifest, 50)):
            if number == 3:
                kill_children()
            yield one

    with pytest.raises(JobFailedError, match="a process that computes scores ended early"):
        list(score_each(rules, killing(), 1))


@pytest.mark.slow  # torch looks every 5 s
@pytest.mark.parametrize("manifest", ["hearts"], indirect=True)
def test_a_killed_loader_is_one_line(manifest: Manifest, rules: Scoring) -> None:
    slices = SliceLoader(rules.reader, image_size=SIDE, batch=1, workers=1)
    batches = iter(slices)
    next(batches)
    kill_children()
    with pytest.raises(JobFailedError, match="a process that loads cases ended early"), scoring.lost_loaders():
        list(batches)
    slices.close()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("manifest", ["hearts"], indirect=True)
def test_values_that_are_no_numbers_are_named(
    manifest: Manifest, model: Watched, workers: int, shards: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(shards / "hearts", tmp_path / "hearts")
    own = case_reader(Manifest.load(copy), split=None, part="test", rank=0, world_size=1)
    offset, size, _ = map(int, own._index.members["image.npy"][1])
    shard = copy / own._path(1)
    shard.chmod(0o644)
    with shard.open("r+b") as file:
        file.seek(offset + size - 4)
        file.write(np.float32(np.nan).tobytes())
    slices = SliceLoader(own, image_size=SIDE, batch=4, workers=workers)
    with pytest.raises(UserError, match=r"^acdc_p001_f10: image holds NaN") as caught:
        list(scoring.predict_cases(Networks([model]), slices, own, ME, "fp32"))
    assert "\n" not in str(caught.value)
    slices.close()


@pytest.mark.parametrize("manifest", ["hearts"], indirect=True)
def test_little_data_and_one_cpu_need_no_processes(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    own = case_reader(manifest, split=None, part="test", rank=0, world_size=1)
    monkeypatch.setattr(scoring, "available_cpus", lambda: 8)
    assert own.decoded_bytes >= 2 * 3 * 32 * 32 * 5  # two volumes and their masks
    assert scoring.processes_for(own, data(2)) == 0
    monkeypatch.setattr(scoring, "LITTLE_DATA", 2 * 3 * 32 * 32 * 5)
    assert scoring.processes_for(own, data(2)) == 2
    assert scoring.processes_for(own, data(0)) == 0
    for cpus in (1, 2):
        monkeypatch.setattr(scoring, "available_cpus", lambda cpus=cpus: cpus)
        assert scoring.processes_for(own, data(2)) == cpus - 1


def test_the_fork_server_has_what_the_jobs_module_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "__main__", evaluate)
    modules = loader_processes.of_main_module()
    assert {"rwkv_jobs.scoring", "rwkvctl.models.bundle", "rwkvctl.training.metrics"} <= set(modules)
    assert all(name.startswith("rwkv") for name in modules)
