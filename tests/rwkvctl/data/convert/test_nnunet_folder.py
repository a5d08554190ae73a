"""Prepared data sets as raw folders of nnU-Net v2."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import nnunet_folder, resplit, synth
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.images import files as image_files
from rwkvctl.data.images import grid
from rwkvctl.data.store import quarantine
from rwkvctl.data.store.case_reader import reader_for
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.reader import Reader

CHECK = (
    "import sys\n"
    "if __name__ == '__main__':\n"
    "    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity\n"
    "    verify_dataset_integrity(sys.argv[1], num_processes=1)\n"
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Volumes of oblique and flipped grids in whole numbers, one with pixels that count for nothing."""
    root = synth.write("nnunet:volumes", tmp_path_factory.mktemp("raw") / "hearts", n=6, size=32)
    turn = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
    for number, path in enumerate(sorted(root.rglob("imagesTr/*.nii.gz"))):
        label = path.parent.parent / "labelsTr" / path.name.replace("_0000", "")
        affine = np.diag([1.5, -1.25, 8.0, 1.0])
        affine[:3, :3] = (turn if number % 2 else np.eye(3)) @ affine[:3, :3]
        affine[:3, 3] = (10.5, -20.25, number)
        for file, kind in ((path, np.int16), (label, np.uint8)):
            values = np.asarray(nibabel.load(file).dataobj)
            scaled = values / values.max() * 900 - 100 if file == path else values
            array = np.rint(scaled).astype(kind)
            if file == label and number == 2:
                array[:4] = 4
            nibabel.Nifti1Image(array, affine).to_filename(file)
    described = next(root.rglob("dataset.json"))
    content = json.loads(described.read_text())
    content["labels"]["ignore"] = 4
    described.write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def volumes(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return prepare("nnunet", [source], tmp_path_factory.mktemp("shards") / "hearts", seeds=[41], ratio="3:1:1")


def described(folder: str) -> dict:
    return json.loads((Path(folder) / "dataset.json").read_text())


def content_of(manifest: Manifest) -> dict[str, tuple]:
    """Slice or volume -> image, ids and grid."""
    reader = Reader(manifest)
    found = {}
    for row in range(len(reader)):
        meta = reader.meta(row)
        image, ids = reader.image(row), reader.mask(row)
        for z, (plane, own) in (
            enumerate(zip(image, ids, strict=True)) if image.ndim == 3 else [(meta["z"], (image, ids))]
        ):
            found[f"{meta['case_id'].removeprefix('hearts_')} {z}"] = (plane, own, grid.affine_of(meta), meta["axes"])
    return found


def test_volumes_come_back_as_they_were(source: Path, volumes: Manifest, tmp_path: Path):
    done = nnunet_folder.export(volumes.root, tmp_path, 42)
    assert (Path(done.folder).name, done.training, done.test, done.folds) == ("Dataset042_hearts", 4, 2, 1)
    compared = 0
    for part in ("Tr", "Ts"):
        for path in sorted((Path(done.folder) / f"images{part}").iterdir()):
            name = path.name.removesuffix("_0000.nii.gz")
            labels = nibabel.load(Path(done.folder) / f"labels{part}" / f"{name}.nii.gz")
            original = next(source.rglob(f"labelsTr/{name.removeprefix('hearts_')}.nii.gz"))
            truth = nibabel.load(original.parent.parent / "imagesTr" / original.name.replace(".nii", "_0000.nii"))
            image = nibabel.load(path)
            assert (image.get_data_dtype(), labels.get_data_dtype()) == (np.float32, np.uint8)
            for own in (image, labels):
                np.testing.assert_allclose(own.affine, truth.affine, atol=1e-5)
                np.testing.assert_allclose(own.header.get_zooms(), truth.header.get_zooms(), rtol=1e-6)
            np.testing.assert_array_equal(labels.dataobj, nibabel.load(original).dataobj)
            values = np.asarray(truth.dataobj)
            window = np.quantile(values, [0.005, 0.995], method="inverted_cdf")
            np.testing.assert_array_equal(image.dataobj, np.clip(values, *window))
            compared += 1
    assert compared == 6
    told = described(done.folder)
    assert told["labels"] == {**dict(zip(volumes.classes, range(4), strict=True)), "ignore": 4}
    assert (told["channel_names"], told["numTraining"], told["file_ending"]) == ({"0": "MRI"}, 4, ".nii.gz")
    assert "the scanner's numbers, clipped to p0.5..p99.5" in told["description"]
    assert volumes.fingerprint in told["description"]


def test_volumes_prepared_again_are_the_same(volumes: Manifest, tmp_path: Path):
    done = nnunet_folder.export(volumes.root, tmp_path, 42)
    again = prepare("nnunet", [Path(done.folder)], tmp_path / "hearts", seeds=[41])
    before, after = content_of(volumes), content_of(again)
    after = {key.removeprefix("hearts_"): value for key, value in after.items()}
    assert len(after) == 4 * 6
    for key, (image, ids, affine, axes) in after.items():
        np.testing.assert_array_equal(ids, before[key][1])
        np.testing.assert_array_equal(image, before[key][0])
        np.testing.assert_allclose(affine, before[key][2], atol=1e-5)
        assert axes == before[key][3]
    assert again.classes == volumes.classes


def test_photographs(binary: Manifest, tmp_path: Path):
    done = nnunet_folder.export(binary.root, tmp_path / "new", 7)
    folder, told = Path(done.folder), described(done.folder)
    assert folder.name == f"Dataset007_{binary.dataset}"
    assert (told["channel_names"], told["file_ending"]) == ({"0": "R", "1": "G", "2": "B"}, ".png")
    assert "ignore" not in told["labels"]
    lists = json.loads((folder / "splits_final.json").read_text())
    assert lists == [{part: binary.ids(None, part) for part in ("train", "val")}]
    for part, ids in (("Tr", [*lists[0]["train"], *lists[0]["val"]]), ("Ts", binary.ids(None, "test"))):
        reader = reader_for(binary, ids)
        assert len(list((folder / f"images{part}").iterdir())) == len(ids)
        for row, key in enumerate(ids):
            image = Image.open(folder / f"images{part}" / f"{key}_0000.png")
            labels = Image.open(folder / f"labels{part}" / f"{key}.png")
            assert (image.mode, labels.mode) == ("RGB", "L")
            np.testing.assert_array_equal(image, reader.image(row))
            np.testing.assert_array_equal(labels, reader.mask(row))
    again = prepare("nnunet", [folder], tmp_path / "again", seeds=[41])
    assert len(again.index) == done.training
    assert again.classes == ["background", *binary.classes[1:]]


def test_slices_without_a_grid_are_stacked(cardiac: Manifest, tmp_path: Path):
    """Those of h5 files know no spacing, and no number of the scanner's."""
    done = nnunet_folder.export(cardiac.root, tmp_path, 27)
    assert done.without_spacing == done.training + done.test
    assert "as they are stored" in done.values
    key = cardiac.ids(None, "train")[0]
    reader = reader_for(cardiac, [key])
    meta = reader.meta(0)
    image = nibabel.load(Path(done.folder) / "imagesTr" / f"{meta['case_id']}_0000.nii.gz")
    assert nibabel.aff2axcodes(image.affine) == ("L", "P", "S")
    assert image.header.get_zooms() == (1, 1, 1)
    first = min(cardiac.ids(None, "train"))
    np.testing.assert_array_equal(image.dataobj[..., 0].T, reader_for(cardiac, [first]).image(0))


def test_folds(binary: Manifest, tmp_path: Path):
    root = Path(shutil.copytree(binary.root, tmp_path / "set"))
    names = resplit.add_folds(root, 4)
    made = Manifest.load(root)
    assert names == [f"folds4_s41_fold{fold}" for fold in range(4)]
    done = nnunet_folder.export(root, tmp_path, 8, split="folds4_s41")
    lists = json.loads((Path(done.folder) / "splits_final.json").read_text())
    assert lists == [{part: made.ids(name, part) for part in ("train", "val")} for name in names]
    assert (done.training, done.test, done.folds) == (18, 2, 4)
    assert nnunet_folder.export(root, tmp_path, 9, split=names[2]).folds == 1


def test_what_nnunet_cannot_take(binary: Manifest, classed: Manifest, polyps: Path, tmp_path: Path):
    def refused(match: str, root: Path, number: int = 5, **options) -> None:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(UserError, match=match) as caught:
            nnunet_folder.export(root, tmp_path / "out", number, **options)
        assert "\n" not in str(caught.value)
        assert sorted(tmp_path.rglob("*")) == before

    refused("is for classification, and nnU-Net segments", classed.root)
    refused("--id 1000: give a number from 1 to 999", binary.root, 1000)
    refused("split 'folds5'", binary.root, split="folds5")
    (tmp_path / "out" / "Dataset005_other").mkdir(parents=True)
    refused("--id 5: is that of .*Dataset005_other; give another one", binary.root)
    (tmp_path / "out" / f"Dataset006_{binary.dataset}").mkdir()
    refused("is there already", binary.root, 6)
    named = prepare("folder", [polyps], tmp_path / "named", seeds=[41], classes=["background", "ignore"])
    refused("'ignore' means something of its own to nnU-Net", named.root, 7)
    raw = Path(shutil.copytree(polyps, tmp_path / "raw"))
    for path in [own for own in raw.rglob("*") if own.is_file()]:
        path.rename(path.with_name(f"{path.stem}_seg{path.suffix}"))
    segmented = prepare("folder", [raw], tmp_path / "segmented", seeds=[41])
    refused("nnU-Net takes no case whose name ends in _seg", segmented.root, 7)


def test_a_volume_that_lacks_a_slice(volumes: Manifest, tmp_path: Path):
    root = Path(shutil.copytree(volumes.root, tmp_path / "set"))
    key = volumes.ids(None, "train")[3]
    left_out = quarantine.Quarantine(fingerprint=volumes.content.fingerprint, samples={key: "damaged"}, shards={})
    quarantine.store(root, left_out)
    with pytest.raises(UserError, match=r"5 of the 6 slices of \S+ are here"):
        nnunet_folder.export(root, tmp_path / "out", 5)


def test_a_failure_leaves_nothing(binary: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(_: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(image_files, "encode_png", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        nnunet_folder.export(binary.root, tmp_path, 5)
    assert list(tmp_path.glob("*Dataset*")) == []


@pytest.mark.slow
@pytest.mark.skipif(find_spec("nnunetv2") is None, reason="nnU-Net is not installed")
@pytest.mark.parametrize("kind", ["volumes", "binary", "cardiac"])
def test_nnunet_accepts_it(kind: str, request: pytest.FixtureRequest, tmp_path: Path):
    done = nnunet_folder.export(request.getfixturevalue(kind).root, tmp_path, 5)
    (tmp_path / "check.py").write_text(CHECK)
    words = [sys.executable, str(tmp_path / "check.py"), done.folder]
    said = subprocess.run(words, env=os.environ, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert "verify_dataset_integrity Done." in said.stdout
    assert not any(word in said.stdout for word in ("Error", "Warning: "))
