"""Slices of stored volumes and volumes of stored slices: the same pixels, whatever form a case is stored in."""

from __future__ import annotations

import pickle
import shutil
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from rwkvctl.base import files
from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import nnunet_folder, resplit, synth
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.feed.cases import iter_cases
from rwkvctl.data.feed.loaders import TrainLoader
from rwkvctl.data.store import quarantine
from rwkvctl.data.store.case_forms import CaseForms
from rwkvctl.data.store.case_ids import case_of
from rwkvctl.data.store.case_reader import reader_for
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.overlap import trained_on
from rwkvctl.data.store.reader import Reader
from rwkvctl.data.store.shard_check import check_shards
from rwkvctl.data.store.splits import Split
from rwkvctl.data.store.verify import verify


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NIfTI volumes of eight cases: 6 as slices, 1 and 1 as volumes."""
    raw = synth.write("nnunet:volumes", tmp_path_factory.mktemp("raw") / "scans", n=8, size=32)
    return prepare("nnunet", [raw], tmp_path_factory.mktemp("shards") / "scans").root


@pytest.fixture
def scans(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "scans"))


def pixels(manifest: Manifest, ids: list[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    reader = reader_for(manifest, ids)
    return {reader.key(row): (reader.image(row), reader.mask(row)) for row in range(len(reader))}


def test_every_case_is_read_in_both_forms(scans: Path):
    """Against the same scans prepared as volumes alone, and as slices alone."""
    manifest = Manifest.load(scans)
    forms = CaseForms(manifest)
    stored = {key: (image, mask) for key, (image, mask) in pixels(manifest, list(forms.row_of)).items()}
    for case in sorted({case_of(key) for key in stored}):
        if case in stored:
            image, mask = stored[case]
            ids = forms.planes(case, len(mask))
            assert not set(ids) & stored.keys()
            found = pixels(manifest, ids)
            for z, key in enumerate(ids):
                assert np.array_equal(found[key][0], image[z])
                assert np.array_equal(found[key][1], mask[z])
                assert (found[key][0].dtype, found[key][1].dtype) == (np.float32, np.uint8)
        else:
            [(image, mask)] = pixels(manifest, [case]).values()
            ids = forms.planes(case, 0)
            assert np.array_equal(image, np.stack([stored[key][0] for key in ids]))
            assert np.array_equal(mask, np.stack([stored[key][1] for key in ids]))
            reader = pickle.loads(pickle.dumps(reader_for(manifest, [case])))
            assert reader.npy_shape(0, "mask.npy") == mask.shape
            assert (reader.meta(0)["z"], reader.meta(0)["id"], reader.meta(0)["case_id"]) == (None, case, case)
            assert np.array_equal(reader.volume(0), image)


def test_folds_of_volumes_train_on_slices_and_score_volumes(scans: Path, tmp_path: Path):
    before = Manifest.load(scans)
    names = resplit.add_folds(scans, 3)
    manifest = Manifest.load(scans)
    assert manifest.fingerprint == before.fingerprint
    test = before.ids(None, "test")
    pool = {case_of(key) for part in ("train", "val") for key in before.ids(None, part)}
    held_out = [manifest.ids(name, "val") for name in names]
    assert sorted(chain(*held_out)) == sorted(pool)
    for name, val in zip(names, held_out, strict=True):
        train = manifest.ids(name, "train")
        assert {case_of(key) for key in train} == pool - set(val)
        assert not set(train) & pool  # slices, all of them
        assert manifest.ids(name, "test") == test
        assert manifest.splits[name].leak_groups_shared == 0
        check_shards(manifest, [*train, *val])
        cases = {case.key: case for case in iter_cases(manifest, split=name, part="val")}
        assert list(cases) == val
        assert all(case.mask.ndim == 3 and case.image.shape == case.mask.shape for case in cases.values())
        depth = sum(len(case.mask) for case in cases.values())
        whole = pixels(manifest, sorted(pool | set(test)))
        assert len(train) == sum(len(mask) for key, (_, mask) in whole.items() if key in pool) - depth
    report = verify(scans)
    assert report.ok, report.problems
    assert not [text for text in report.warnings if "folds3" in text]
    exported = nnunet_folder.export(scans, tmp_path / "nnunet", 7, split="folds3_s41")
    assert (exported.training, exported.test, exported.folds) == (len(pool), len(test), 3)


def test_a_loader_reads_the_slices_of_a_fold(scans: Path):
    names = resplit.add_folds(scans, 2)
    manifest = Manifest.load(scans)
    stored_whole = manifest.ids(None, "val")
    name = next(name for name in names if stored_whole[0] not in manifest.ids(name, "val"))
    loader = TrainLoader(
        manifest, split=name, image_size=32, global_batch=2, rank=0, world_size=1, seed=1, workers=0, augment=None
    )
    seen = [key for batch in loader.epoch(0) for key in batch.keys]
    loader.close()
    train = manifest.ids(name, "train")
    assert set(seen) <= set(train)
    assert len(seen) == len(train) // 2 * 2
    assert {case_of(key) for key in train} >= set(stored_whole)


def test_what_was_trained_on_is_told_by_the_case(scans: Path, made: Path, tmp_path: Path):
    names = resplit.add_folds(scans, 2)
    manifest, other = Manifest.load(scans), Manifest.load(made)
    train, val = manifest.ids(names[0], "train"), manifest.ids(names[0], "val")
    assert trained_on(manifest, train, manifest, val) == []
    assert trained_on(manifest, manifest.ids(names[1], "train"), manifest, val) == val
    raw = synth.write("nnunet:volumes", tmp_path / "raw" / "others", n=8, size=32)
    elsewhere = prepare("nnunet", [raw], tmp_path / "others", seeds=[3])
    assert elsewhere.fingerprint != other.fingerprint
    ids = [key for part in ("val", "test") for key in elsewhere.ids(None, part)]
    cases = {case_of(key).removeprefix("scans_") for key in train}
    expected = [key for key in ids if key.removeprefix("others_") in cases]
    assert trained_on(manifest, train, elsewhere, ids) == expected


def test_splits_of_cases_that_others_laid_down(scans: Path):
    manifest = Manifest.load(scans)
    cases = sorted({case_of(key.decode()) for key in manifest.index.keys})
    own = Split("theirs", {"train": cases[2:], "val": cases[:2], "test": []})
    assert resplit.add_case_splits(scans, {"theirs_fold0": own}) == ["theirs_fold0"]
    found = Manifest.load(scans).split_ids("theirs_fold0")
    assert found["val"] == cases[:2]
    assert {case_of(key) for key in found["train"]} == set(cases[2:])
    with pytest.raises(UserError, match=r"split x: there is no case nobody"):
        resplit.add_case_splits(scans, {"x": Split("x", {"train": ["nobody"], "val": cases, "test": []})})


def test_a_case_that_lacks_a_slice_is_no_volume(scans: Path):
    manifest = Manifest.load(scans)
    gone = manifest.ids(None, "train")[1]
    case = case_of(gone)
    forms = CaseForms(manifest)
    forms.row_of.pop(gone)
    with pytest.raises(UserError, match=rf"{case} lacks slices, so it is no volume"):
        forms.place(case)
    names = resplit.add_folds(scans, 2)
    left_out = quarantine.Quarantine(fingerprint=manifest.fingerprint, samples={gone: "bad"}, shards={})
    quarantine.store(scans, left_out)
    damaged = Manifest.load(scans)
    whole = [key for name in names for key in damaged.split_ids(name)["val"]]
    assert case not in whole
    assert any(case_of(key) == case for name in names for key in damaged.split_ids(name)["train"])


def test_what_is_in_neither_form_is_named(scans: Path):
    manifest = Manifest.load(scans)
    [volume, *_] = manifest.ids(None, "val")
    with pytest.raises(UserError, match=r"the split names 'nobody_z003', which is in no shard"):
        reader_for(manifest, ["nobody_z003"])
    reader = reader_for(manifest, [f"{volume}_z999"])
    with pytest.raises(UserError, match=rf"{volume}_z999.image.npy: has \d+ slices, and slice 999 is asked for"):
        reader.image(0)
    assert len(Reader(manifest)) == len(manifest.index)


def test_rules_are_for_volumes_too(scans: Path):
    [name] = resplit.add_split(scans, "grouped:8:1:1", seed=5)
    manifest = Manifest.load(scans)
    found = manifest.split_ids(name)
    assert found["test"] == manifest.ids(None, "test")
    assert all(key == case_of(key) for key in found["val"])
    assert files.sha256_file(scans / "splits" / f"{name}.json") == manifest.splits[name].sha256


@pytest.mark.parametrize("name", ["acdc", "acdc:nifti", "synapse"])
def test_folds_of_published_sets_keep_their_test_part(name: str, tmp_path: Path):
    """Of Synapse val and test are the same cases, which no fold has."""
    raw = synth.write(name, tmp_path / "raw", n=6, size=32)
    root = prepare(name.partition(":")[0], [raw], tmp_path / "set", allow_partial=True).root
    names = resplit.add_folds(root, 2)
    manifest = Manifest.load(root)
    test = set(manifest.ids(None, "test"))
    pool = {case_of(key) for part in ("train", "val") for key in manifest.ids(None, part)} - test
    held_out = [manifest.ids(split, "val") for split in names]
    assert sorted(chain(*held_out)) == sorted(pool)
    for split, val in zip(names, held_out, strict=True):
        assert set(manifest.ids(split, "test")) == test
        train = manifest.ids(split, "train")
        assert {case_of(key) for key in train} == pool - set(val)
        reader = reader_for(manifest, [*train, *val])
        assert [reader.mask(row).ndim for row in range(len(reader))] == [2] * len(train) + [3] * len(val)
    assert verify(root).ok
