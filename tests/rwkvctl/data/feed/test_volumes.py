"""Patches of volumes: the same for any number of workers, in register with their masks, kept once a machine."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from rwkvctl.base.errors import UserError
from rwkvctl.config.specs.augment import SegmentationAugment
from rwkvctl.config.specs.volumes import VolumesSpec
from rwkvctl.data.convert import synth
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.feed import volume_cache, volume_patches
from rwkvctl.data.feed.loaders import TrainLoader
from rwkvctl.data.feed.samples import Batch
from rwkvctl.data.feed.volume_cache import Resampled, Volumes
from rwkvctl.data.store.case_ids import cases_of
from rwkvctl.data.store.case_reader import reader_for
from rwkvctl.data.store.manifest import Manifest

PLAIN = SegmentationAugment(horizontal_flip=0, vertical_flip=0, rotate90=0, affine=0, brightness_contrast=0)
SPEC = VolumesSpec(patch=(4, 32, 32), spacing=(4.0, 2.0, 2.0), patches_per_case=2)


@pytest.fixture(scope="session")
def spaced(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Volumes of 5 x 60 x 64 voxels of 4 x 1.25 x 1.5 mm."""
    raw = tmp_path_factory.mktemp("raw") / "spaced"
    synth.write("decathlon", raw)
    return prepare("decathlon", [raw], tmp_path_factory.mktemp("shards") / "spaced", allow_partial=True)


def loader(manifest: Manifest, volumes: VolumesSpec = SPEC, **changes: Any) -> TrainLoader:
    options: dict[str, Any] = {
        "split": None, "image_size": 224, "global_batch": 6, "rank": 0, "world_size": 1, "seed": 41, "workers": 0,
        "augment": SegmentationAugment(preset="nnunet", elastic=0.3), "tail": "wrap",
    }  # fmt: skip
    return TrainLoader(manifest, volumes=volumes, **options | changes)


def same(found: list[Batch], wanted: list[Batch]) -> bool:
    return [batch.keys for batch in found] == [batch.keys for batch in wanted] and all(
        torch.equal(one.images, other.images) and torch.equal(one.targets, other.targets)
        for one, other in zip(found, wanted, strict=True)
    )


def test_every_case_gives_its_patches_in_a_pass(spaced: Manifest):
    batches = list(loader(spaced).epoch(0))
    assert batches[0].images.shape == (6, 1, 4, 32, 32)
    assert batches[0].targets.shape == (6, 4, 32, 32)
    assert batches[0].targets.dtype == torch.uint8
    cases = cases_of(spaced.ids(None, "train"))
    assert Counter(key for batch in batches for key in batch.keys) == dict.fromkeys(cases, 2)
    assert not same(batches, list(loader(spaced).epoch(1)))


@pytest.mark.parametrize("workers", [0, 2])
def test_any_number_of_processes_and_workers_sees_the_same(spaced: Manifest, workers: int, home: Path):
    whole = list(loader(spaced).epoch(3))
    kept = loader(spaced, workers=workers)
    assert "training volumes are kept at 4 x 2 x 2 mm" in kept.keep_decoded()
    assert same(list(kept.epoch(3)), whole)
    assert same(list(kept.epoch(3, consumed=6)), whole[1:])
    kept.close()
    parts = [list(loader(spaced, rank=rank, world_size=3, micro_batch=2).epoch(3)) for rank in range(3)]
    for step, batch in enumerate(whole):
        joined = [part[step] for part in parts]
        assert torch.equal(torch.cat([each.images for each in joined]), batch.images)
    assert kept.keys(3, 6) == whole[1].keys


def test_what_is_kept_is_read_and_what_is_gone_or_damaged_is_made_again(spaced: Manifest, home: Path, monkeypatch):
    wanted = list(loader(spaced).epoch(0))
    assert loader(spaced).keep_decoded()
    files = sorted((home / "cache/volumes").glob("*.safetensors"))
    assert len(files) == len(cases_of(spaced.ids(None, "train")))
    again = loader(spaced)
    with monkeypatch.context() as patched:
        patched.setattr(volume_cache, "resampled", refuse)
        assert again.keep_decoded() == ""
        assert same(list(again.epoch(0)), wanted)
    files[0].unlink()
    files[1].write_bytes(b"damaged" * 10)
    assert same(list(again.epoch(0)), wanted)
    shutil.rmtree(home / "cache/volumes")
    assert same(list(again.epoch(0)), wanted)


def refuse(*args: Any) -> Any:
    raise AssertionError("a volume was resampled again")


@pytest.mark.parametrize(("limit", "line"), [("0", ""), ("0.0001", "training volumes are resampled whenever")])
def test_nothing_is_kept_of_more_than_there_is_room_for(spaced: Manifest, home: Path, monkeypatch, limit, line):
    monkeypatch.setenv("RWKVCTL_DECODED_GB", limit)
    wanted, other = list(loader(spaced).epoch(0)), loader(spaced)
    assert other.keep_decoded().startswith(line)
    assert not list(home.glob("cache/volumes/*.safetensors"))
    assert same(list(other.epoch(0)), wanted)


def test_native_volumes_are_the_shards_own(spaced: Manifest):
    cases = cases_of(spaced.ids(None, "train"))
    reader = reader_for(spaced, cases)
    found = volume_cache.resampled(reader, 0, None, None)
    assert np.array_equal(found.image[0], reader.volume(0))
    assert np.array_equal(found.mask, reader.mask(0))
    for class_id in found.classes:
        assert (found.mask[tuple(found.voxels_of(class_id).T)] == class_id).all()
    spaced_out = volume_cache.resampled(reader, 0, (4.0, 2.5, 3.0), None)
    assert spaced_out.shape == (5, 30, 32)


def test_sets_without_spacing_and_images_are_refused(cardiac: Manifest, binary: Manifest):
    with pytest.raises(
        UserError, match=r"has no spacing, so it cannot be brought to \[4.0, 2.0, 2.0\] mm; set volumes"
    ):
        next(loader(cardiac).epoch(0))
    assert next(loader(cardiac, SPEC.model_copy(update={"spacing": "native"})).epoch(0)).images.shape[1] == 1


# Patches ------------------------------------------------------------------------------------------------------------


def marked(shape: tuple[int, int, int] = (9, 40, 44), channels: int = 1) -> Resampled:
    """A volume whose image is its mask, blocks of three classes."""
    mask = np.zeros(shape, np.uint8)
    mask[2:7, 5:25, 10:30] = 1
    mask[4:6, 20:38, 20:40] = 2
    mask[3, 30, 4] = 3
    image = np.stack([mask.astype(np.float32) / 3] * channels)
    return Resampled(image, mask, {value: volume_cache.some_of(mask, value) for value in (1, 2, 3)})


@pytest.mark.parametrize("patch", [(4, 16, 16), (12, 48, 48), (9, 40, 44), (16, 8, 64)])
def test_patches_lie_within_the_volume_and_continue_its_border(patch):
    volume, rng = marked(), np.random.default_rng(0)
    for _ in range(20):
        start = volume_patches.place(volume, patch, 0.5, rng)
        for at, side, n in zip(start, patch, volume.shape, strict=True):
            assert 0 <= at <= n - side if n >= side else at == -((side - n) // 2)
        image, mask = volume_patches.whole_box(volume, start, patch)
        before = [max(0, -at) for at in start]
        after = [max(0, at + side - n) for at, side, n in zip(start, patch, volume.shape, strict=True)]
        around = list(zip(before, after, strict=True))
        padded = np.pad(volume.mask, around, "edge")
        box = tuple(slice(at + b, at + b + side) for at, b, side in zip(start, before, patch, strict=True))
        assert np.array_equal(mask, padded[box])
        assert np.array_equal(image[0], mask.astype(np.float32) / 3)


def test_the_share_of_foreground_is_that_asked_for_and_classes_take_turns():
    volume, rng = marked((40, 200, 200)), np.random.default_rng(1)
    patch = (4, 8, 8)

    def seen(share: float) -> list[set[int]]:
        starts = [volume_patches.place(volume, patch, share, rng) for _ in range(600)]
        return [set(np.unique(volume_patches.whole_box(volume, at, patch)[1])) - {0} for at in starts]

    assert all(seen(1.0))
    with_single_voxel = sum(3 in each for each in seen(1.0)) / 600
    assert 0.28 < with_single_voxel < 0.4
    anywhere = sum(map(bool, seen(0.0))) / 600
    assert anywhere < 0.1
    assert abs(sum(map(bool, seen(0.5))) / 600 - (0.5 + anywhere / 2)) < 0.08


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 1.0, 1.5), (8.0, 1.0, 1.0)])
@pytest.mark.parametrize("angles", [(30.0, 0.0, 0.0), (15.0, 20.0, -25.0)])
def test_turned_patches_are_those_of_scipy(spacing, angles):
    rng = np.random.default_rng(2)
    image = ndimage.gaussian_filter(rng.random((24, 50, 48), np.float32), 1.5)
    volume = Resampled(image[None], (image > np.median(image)).astype(np.uint8), {})
    start, patch = (5, 12, 10), (10, 24, 22)
    moves = volume_patches.matrix(angles, (1.1, 1.1, 1.1), spacing)
    found, mask = volume_patches.turned(volume, start, patch, moves)
    half = (np.array(patch) - 1) / 2
    offset = np.array(start) + half - moves @ half
    theirs = ndimage.affine_transform(image, moves, offset, patch, order=1, mode="nearest")
    ids = ndimage.affine_transform(volume.mask, moves, offset, patch, order=0, mode="nearest")
    np.testing.assert_allclose(found[0].numpy(), theirs, atol=2e-5)
    assert (mask.numpy() != ids).mean() < 1e-3  # halfway between two voxels


def test_thick_slices_stay_in_their_plane():
    moves = volume_patches.matrix((30.0, 0.0, 0.0), (1, 1.2, 1.2), (8.0, 1.0, 1.5))
    np.testing.assert_allclose(moves[0], [1, 0, 0])
    volume = marked((9, 40, 44), channels=2)
    for start, patch in (((2, 5, 6), (4, 24, 20)), ((-2, -4, 0), (13, 48, 16))):
        slices, ids = volume_patches.turned_slices(volume, start, patch, moves[1:, 1:])
        whole, other = volume_patches.turned(volume, start, patch, moves)
        assert torch.allclose(slices, whole, atol=1e-5)
        assert torch.equal(ids, other)
    sphere = volume_patches.matrix((0.0, 20.0, 0.0), (1, 1, 1), (4.0, 1.0, 1.0))
    in_mm = np.diag([4.0, 1, 1]) @ sphere @ np.diag([0.25, 1, 1])
    np.testing.assert_allclose(in_mm @ in_mm.T, np.eye(3), atol=1e-12)  # a rotation of the body


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (8.0, 1.0, 1.0)])
def test_image_and_mask_move_together(spacing):
    """What is drawn into the image follows the mask through every step of geometry."""
    volume, rng = marked((20, 64, 64)), np.random.default_rng(3)
    augment = SegmentationAugment(affine=1, elastic=1, rotate90=1)
    for _ in range(10):
        start = volume_patches.place(volume, (12, 48, 48), 1.0, rng)
        image, mask = volume_patches.geometry(volume, start, (12, 48, 48), spacing, augment, 0.5, rng)
        same_side = (image[0] * 3 - mask.float()).abs() < 0.75
        assert same_side.float().mean() > 0.97


@pytest.mark.parametrize("channels", [1, 2])
def test_channels_in_deviations_keep_their_range_and_change_by_themselves(channels: int):
    image = torch.from_numpy(np.random.default_rng(0).normal(0, 1, (channels, 6, 20, 22)).astype(np.float32))
    augment = SegmentationAugment(preset="nnunet", brightness_only=1, gamma=1, noise=1, blur=1, low_resolution=1)
    changed = volume_patches.appearance(image, augment, np.random.default_rng(1))
    assert changed.shape == image.shape
    assert torch.isfinite(changed).all()
    for before, after in zip(image, changed, strict=True):
        assert after.min() >= before.min() - 1e-4
        assert after.max() <= before.max() + 1e-4
        assert not torch.equal(before, after)
    assert torch.allclose(volume_patches.appearance(image, PLAIN, np.random.default_rng(1)), image, atol=1e-6)


def test_volumes_may_be_pickled(spaced: Manifest):
    import pickle

    reader = reader_for(spaced, cases_of(spaced.ids(None, "train")))
    volumes = Volumes(spaced, reader, None)
    volumes.volume(0)
    assert pickle.loads(pickle.dumps(volumes)).volume(1).shape == (5, 60, 64)
