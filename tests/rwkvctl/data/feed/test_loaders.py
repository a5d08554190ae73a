from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch

from rwkvctl.base.errors import UserError
from rwkvctl.config.specs.augment import ClassificationAugment, SegmentationAugment
from rwkvctl.data.feed import model_input
from rwkvctl.data.feed.ahead import ahead
from rwkvctl.data.feed.cases import iter_cases
from rwkvctl.data.feed.loaders import ClassificationEvalLoader, TrainLoader
from rwkvctl.data.feed.model_input import to_input
from rwkvctl.data.feed.samples import Batch
from rwkvctl.data.store import index
from rwkvctl.data.store.case_reader import reader_for
from rwkvctl.data.store.manifest import Manifest

SEGMENTATION = SegmentationAugment(affine=1, brightness_contrast=1)


def make(manifest: Manifest, **changes) -> TrainLoader:
    options = {
        "split": None,
        "image_size": 32,
        "global_batch": 4,
        "rank": 0,
        "world_size": 1,
        "seed": 41,
        "workers": 0,
        "augment": ClassificationAugment() if manifest.task == "classification" else SEGMENTATION,
        "tail": "wrap",
    }
    return TrainLoader(manifest, **{**options, **changes})


def same(a: Batch, b: Batch) -> bool:
    return a.keys == b.keys and torch.equal(a.images, b.images) and torch.equal(a.targets, b.targets)


@pytest.mark.parametrize("name", ["binary", "cardiac", "classed"])
def test_batches(name, request):
    manifest = request.getfixturevalue(name)
    loader = make(manifest)
    batches = list(loader.epoch(0))
    assert len(batches) == loader.steps_per_epoch
    first = batches[0]
    if name == "classed":
        assert first.targets.dtype == torch.int64
        reader = reader_for(manifest, first.keys)
        assert first.targets.tolist() == [reader.label(row) for row in range(4)]
    else:
        assert (first.targets.dtype, first.targets.shape) == (torch.uint8, (4, 32, 32))
    channels, kind = (1, torch.float32) if name == "cardiac" else (3, torch.uint8)
    assert (first.images.shape, first.images.dtype) == ((4, channels, 32, 32), kind)
    seen = [key for batch in batches for key in batch.keys]
    assert set(seen) == set(manifest.ids(None, "train"))
    assert not same(first, next(loader.epoch(1)))
    assert same(first, next(loader.epoch(0)))


@pytest.mark.parametrize(
    ("name", "augment"),
    [
        ("binary", {"augment": SEGMENTATION}),
        ("binary", {"augment": SegmentationAugment(preset="photo", elastic=1, noise=1)}),
        ("cardiac", {"augment": SegmentationAugment(preset="nnunet", gamma=1)}),
        ("classed", {}),
    ],
)
def test_workers_change_nothing(name, augment, request):
    """Also after a pass that was given up half-way, with the same worker processes."""
    manifest = request.getfixturevalue(name)
    alone, crew = make(manifest, **augment), make(manifest, workers=2, **augment)
    for epoch, consumed in ((0, 0), (1, 8), (0, 4)):
        pairs = list(zip(alone.epoch(epoch, consumed), crew.epoch(epoch, consumed), strict=True))
        assert all(same(a, b) for a, b in pairs)
        next(crew.epoch(5))
    crew.close()


def test_a_mapped_index_changes_nothing(classed: Manifest, monkeypatch: pytest.MonkeyPatch):
    """As of a large data set, whose loader processes are sent the names of files."""
    plain = list(make(classed).epoch(1))
    monkeypatch.setattr(index, "CACHED_FROM", 1)
    crew = make(Manifest.load(classed.root), workers=2)
    assert len(ForkingPickler.dumps(crew._loader.dataset)) < 4000
    assert all(same(a, b) for a, b in zip(plain, crew.epoch(1), strict=True))
    crew.close()


def test_threads_change_nothing(binary: Manifest):
    threads = torch.get_num_threads()
    first = list(make(binary, image_size=256).epoch(0))
    try:
        torch.set_num_threads(4)
        assert all(same(a, b) for a, b in zip(first, make(binary, image_size=256).epoch(0), strict=True))
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(threads)


def test_ranks_make_up_the_global_batch(binary: Manifest):
    whole = list(make(binary).epoch(2))
    halves = [list(make(binary, rank=rank, world_size=2).epoch(2)) for rank in (0, 1)]
    for batch, low, high in zip(whole, *halves, strict=True):
        assert batch.keys == low.keys + high.keys
        assert torch.equal(batch.images, torch.cat([low.images, high.images]))


def test_resume_in_mid_epoch_with_another_world_size(classed: Manifest):
    whole = list(make(classed).epoch(3))
    rest = list(make(classed, world_size=4, rank=2).epoch(3, consumed=8))
    assert [batch.keys for batch in rest] == [batch.keys[2:3] for batch in whole[2:]]
    assert torch.equal(rest[0].images, whole[2].images[2:3])


def test_global_generators_are_left_alone(classed: Manifest):
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    list(make(classed).epoch(0))
    crew = make(classed, workers=1)
    list(crew.epoch(0))
    crew.close()
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"global_batch": 4, "world_size": 3}, "global batch 4 is not divisible by the world size 3"),
        ({"global_batch": 64, "tail": "drop"}, "larger than the 16 training samples"),
        ({"rank": 2}, "rank 2"),
        ({"split": "other"}, "split 'other'"),
        ({"augment": ClassificationAugment()}, "is for segmentation"),
        ({"image_size": 0}, "image size"),
    ],
)
def test_mistakes(binary: Manifest, changes, match):
    with pytest.raises(UserError, match=match):
        make(binary, **changes)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_shard_is_one_line(binary: Manifest, tmp_path: Path, workers: int):
    copy = Manifest.load(shutil.copytree(binary.root, tmp_path / "copy"))
    os.truncate(copy.root / "all-000000.tar", 2000)
    loader = make(copy, workers=workers)
    with pytest.raises(
        UserError, match=r"^/.*all-000000\.tar: \w+\.jpg: the shard is shorter than its index says.*again$"
    ):
        list(loader.epoch(0))
    loader.close()


def test_null_augmentation_and_oblong_images(binary: Manifest, classed: Manifest):
    assert next(make(binary, augment=None, image_size=(16, 48)).epoch(0)).images.shape == (4, 3, 16, 48)
    first, again = (next(make(classed, augment=None, seed=seed, tail="wrap").epoch(0)) for seed in (1, 1))
    assert same(first, again)


def test_to_input(cardiac: Manifest):
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    expected = (images / 255 - torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(1, 3, 1, 1)
    torch.testing.assert_close(to_input(images, "cpu"), expected)
    floats = next(make(cardiac).epoch(0)).images
    assert torch.equal(to_input(floats, "cpu"), floats)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("name", ["binary", "cardiac", "classed", "cervix"])
def test_channels_stay_last_from_the_sample_to_the_network(name, workers, request):
    """So the network's input is the batch's own memory or one pass over it, never a second layout."""
    alone, loader = (make(request.getfixturevalue(name), workers=n, unlabeled=name == "cervix") for n in (0, workers))
    assert alone._loader.dataset[0, 0][0].movedim(-3, -1).is_contiguous()
    images = next(loader.epoch(0)).images
    assert images.permute(0, 2, 3, 1).is_contiguous()
    if name == "cervix":
        images = torch.cat(images.chunk(2, dim=1))
    assert to_input(images, "cpu").permute(0, 2, 3, 1).is_contiguous()
    if images.dtype == torch.float32:
        assert to_input(images, "cpu").data_ptr() == images.data_ptr()
    loader.close()


def test_constants_asked_for_in_inference_serve_training():
    model_input._constants.cache_clear()
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    with torch.inference_mode():
        to_input(images, "cpu")
    weights = torch.ones(3, requires_grad=True)
    (to_input(images, "cpu") * weights.view(1, 3, 1, 1)).sum().backward()
    assert weights.grad is not None
    assert model_input._constants(torch.device("cpu"))[0] is model_input._constants(torch.device("cpu"))[0]


def test_on_a_cpu_batches_are_passed_on_as_they_are(binary: Manifest):
    batches = make(binary).epoch(0)
    assert ahead(batches, torch.device("cpu")) is batches


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_on_the_gpu_ahead_and_the_same(binary: Manifest, workers: int):
    loader, device = make(binary, workers=workers), torch.device("cuda", 0)
    plain = [*make(binary).epoch(0), *make(binary).epoch(1)]
    moved, busy = [], torch.randn(2048, 2048, device=device)
    for epoch in (0, 1):
        for batch in ahead(loader.epoch(epoch), device):
            for _ in range(20):
                busy = (busy @ busy).clamp(-1, 1)  # the kernels are behind, memory is given back and taken meanwhile
            moved.append((to_input(batch.images, device) + busy[0, 0] * 0, batch.targets.clone(), batch.keys))
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
    loader.close()
    assert [keys for *_, keys in moved] == [batch.keys for batch in plain]
    for (images, targets, _), batch in zip(moved, plain, strict=True):
        torch.testing.assert_close(images.cpu(), to_input(batch.images, "cpu"))
        assert torch.equal(targets.cpu(), batch.targets)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_next_batch_is_copied_while_kernels_run(binary: Manifest):
    """No copy waits for the kernels, nor the host for a copy: it is through before the first kernel has ended."""
    device = torch.device("cuda", 0)
    batches = [Batch(b.images.pin_memory(), b.targets.pin_memory(), b.keys) for b in make(binary).epoch(0)]
    list(ahead(iter(batches), device))  # memory and stream are there
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)
    began = torch.cuda.Event()
    began.record()
    seen = [batch.keys for batch in ahead(iter(batches), device)]
    assert not began.query(), "the host waited"
    torch.cuda.synchronize()
    assert seen == [batch.keys for batch in batches]


@pytest.mark.parametrize("world", [1, 2, 4, 9])
def test_classification_eval_sees_each_sample_once(classed: Manifest, world: int):
    keys = []
    for rank in range(world):
        loader = ClassificationEvalLoader(
            classed, split=None, part="val", image_size=32, batch=4, rank=rank, world_size=world, workers=0
        )
        batches = list(loader)
        assert len(batches) == len(loader)
        assert [key for batch in batches for key in batch.keys] == classed.ids(None, "val")[rank::world]
        keys += [key for batch in batches for key in batch.keys]
    assert sorted(keys) == sorted(classed.ids(None, "val"))


def test_eval_with_workers(classed: Manifest):
    options = {"split": None, "part": "val", "image_size": 32, "batch": 4, "rank": 0, "world_size": 1}
    crew = ClassificationEvalLoader(classed, workers=1, **options)
    alone = ClassificationEvalLoader(classed, workers=0, **options)
    for _ in range(2):
        assert all(same(a, b) for a, b in zip(alone, crew, strict=True))
    crew.close()


def test_cases(binary: Manifest, cardiac: Manifest, classed: Manifest):
    case = next(iter_cases(binary, split=None, part="test"))
    assert (case.image.shape, case.image.dtype, case.mask.shape) == ((48, 48, 3), np.uint8, (48, 48))
    volumes = list(iter_cases(cardiac, split=None, part="test"))
    assert [case.key for case in volumes] == cardiac.ids(None, "test")
    assert (volumes[0].image.shape, volumes[0].image.dtype) == ((3, 32, 32), np.float32)
    assert isinstance(volumes[0].image, np.memmap)  # read slice by slice, when it is used
    whole = reader_for(cardiac, [volumes[0].key]).image(0)
    np.testing.assert_array_equal(volumes[0].image, whole)
    np.testing.assert_array_equal(volumes[0].image[1], whole[1])
    assert volumes[0].spacing_mm is None
    assert volumes[0].meta["patient_id"] == "patient001"
    assert next(iter_cases(cardiac, split=None, part="train")).image.shape == (32, 32)
    ranks = [[c.key for c in iter_cases(cardiac, split=None, part="test", rank=r, world_size=3)] for r in range(3)]
    assert ranks == [["acdc_p001_f01"], ["acdc_p001_f10"], []]
    with pytest.raises(UserError, match="classification set"):
        iter_cases(classed, split=None, part="test")


@pytest.mark.parametrize("epoch_steps", [1, 3, 7])  # less than a pass of 4 steps, not whole passes, more than one
def test_epochs_of_so_many_steps_go_on_through_the_passes(binary: Manifest, epoch_steps: int):
    passes = [batch.keys for number in range(6) for batch in make(binary, tail="wrap").epoch(number)]
    loader = make(binary, epoch_steps=epoch_steps)
    assert loader.steps_per_epoch == epoch_steps
    epochs = [[batch.keys for batch in loader.epoch(epoch)] for epoch in range(3)]
    assert [len(epoch) for epoch in epochs] == [epoch_steps] * 3
    assert [keys for epoch in epochs for keys in epoch] == passes[: 3 * epoch_steps]
    assert [batch.keys for batch in loader.epoch(2, consumed=4)] == epochs[2][1:], "resumed after one step"
    halves = [list(make(binary, epoch_steps=epoch_steps, rank=rank, world_size=2).epoch(1)) for rank in range(2)]
    assert [a.keys + b.keys for a, b in zip(*halves, strict=True)] == epochs[1]


VICTIM = """
import sys, time
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.feed.loaders import TrainLoader
if __name__ == "__main__":
    loader = TrainLoader(Manifest.load(sys.argv[1]), split=None, image_size=32, global_batch=4, rank=0, world_size=1,
                         seed=1, workers=2, augment=None)
    batches = loader.epoch(0)
    next(batches)
    print(*(worker.pid for worker in loader._loader._iterator._workers), flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_workers_do_not_outlive_a_killed_parent(binary: Manifest, tmp_path: Path):
    script = tmp_path / "victim.py"
    script.write_text(VICTIM)
    with subprocess.Popen([sys.executable, script, binary.root], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        parent.send_signal(signal.SIGKILL)
    assert len(workers) == 2
    deadline = time.monotonic() + 900
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(alive(pid) for pid in workers)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
