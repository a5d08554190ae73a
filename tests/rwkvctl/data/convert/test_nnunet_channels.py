"""nnU-Net folders of several channels, with regions, ignored labels, a CT window; of version 1; with listed files."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import nnunet_folder, synth
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.convert.rehearsal import rehearse
from rwkvctl.data.images import grid
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.reader import Reader
from rwkvctl.data.store.verify import verify


@pytest.fixture(scope="module")
def tumours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "source"
    return synth.write("nnunet:channels", folder, n=8, size=32) / "Dataset045_Tumours"


@pytest.fixture(scope="module")
def made(tumours: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return prepare("nnunet", [tumours], tmp_path_factory.mktemp("shards") / "tumours", seeds=[1])


def copied(tree: Path, target: Path, **changes) -> Path:
    import shutil

    root = Path(shutil.copytree(tree, target))
    content = json.loads((root / "dataset.json").read_text()) | changes
    (root / "dataset.json").write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return root


def refused(tree: Path, tmp_path: Path, match: str, **options) -> None:
    with pytest.raises(UserError, match=match) as caught:
        prepare("nnunet", [tree], tmp_path / "refused", **options)
    assert "\n" not in str(caught.value)


def test_two_channels_with_regions_and_ignored_voxels(tumours: Path, made: Manifest):
    assert verify(made.root, deep=True).problems == []
    assert (made.channels, made.channel_names, made.image_kind) == (2, ["T1", "FLAIR"], "float")
    assert made.classes == ["background", "whole tumour only", "tumour core only", "enhancing"]
    regions = made.content.regions or []
    assert [(own.name, own.classes, own.value) for own in regions] == [
        ("whole tumour", [1, 2, 3], 1), ("tumour core", [2, 3], 2), ("enhancing", [3], 3)
    ]  # fmt: skip
    reader, ignored = Reader(made), 0
    for row in range(len(reader)):
        meta, image, ids = reader.meta(row), reader.image(row), reader.mask(row)
        assert (image.dtype, image.shape) == (np.float32, (*ids.shape, 2))
        name = meta["case_id"].removeprefix("tumours_")
        stored = sitk.GetArrayFromImage(sitk.ReadImage(tumours / "labelsTr" / f"{name}.nii.gz"))
        ids = ids if ids.ndim == 3 else ids[None]
        labels = grid.turned_again(stored.transpose(2, 1, 0), meta)
        labels = labels if meta["z"] is None else labels[meta["z"] : meta["z"] + 1]
        np.testing.assert_array_equal(np.where(ids == 255, 4, ids), labels)
        ignored += int((ids == 255).sum())
        if meta["z"] is None:
            raw = nibabel.load(tumours / "imagesTr" / f"{name}_0001.nii.gz")
            own = grid.turned_again(np.asarray(raw.dataobj), meta).astype(float)
            tissue = own > 0
            expected = (own[tissue] - own[tissue].mean()) / own[tissue].std()
            np.testing.assert_allclose(image[..., 1][tissue], expected, atol=0.02)  # a few holes are filled
    assert ignored == 2 * 6 * 9


def test_percentiles_can_be_had_for_every_channel(tumours: Path, tmp_path: Path):
    made = prepare("nnunet", [tumours], tmp_path / "out", intensity="percentiles")
    clip = {"clip": ["p0.5", "p99.5"], "scale": "(x - low) / (high - low)"}
    assert made.content.intensity == {"channels": [clip, clip]}
    reader = Reader(made)
    images = [reader.image(row) for row in range(len(reader))]
    assert (min(map(np.min, images)), max(map(np.max, images))) == (0, 1)


def test_a_rehearsal_reads_the_same(tumours: Path, tmp_path: Path):
    found = rehearse("nnunet", [tumours], tmp_path / "out")
    assert (found.problems, found.classes[3], len(found.examples[0])) == ([], "enhancing", 3)
    assert found.sheet.startswith(b"\x89PNG")


def test_a_ct_has_the_window_of_the_training_cases_foreground(tmp_path: Path):
    tree = synth.write("nnunet:ct", tmp_path / "source", n=8, size=32) / "Dataset046_Livers"
    made = prepare("nnunet", [tree], tmp_path / "livers", seeds=[1])
    training = [
        key.removeprefix("livers_").partition("_z")[0] for part in ("train", "val") for key in made.ids(None, part)
    ]
    inside = []
    for name in dict.fromkeys(training):
        image, label = (
            np.asarray(nibabel.load(tree / folder / name).dataobj)
            for folder, name in (("imagesTr", f"{name}_0000.nii.gz"), ("labelsTr", f"{name}.nii.gz"))
        )
        own = image[label > 0]
        inside.append(np.resize(own, 20_000))  # each case counts alike
    numbers = np.concatenate(inside)
    rule = made.content.intensity or {}
    assert rule["clip"] == pytest.approx(np.percentile(numbers, [0.5, 99.5]), abs=1)
    assert (rule["mean"], rule["deviation"]) == pytest.approx((numbers.mean(), numbers.std()), abs=0.2)
    percentiles = prepare("nnunet", [tree], tmp_path / "other", seeds=[1], intensity="percentiles")
    assert percentiles.content.intensity == {"clip": ["p0.5", "p99.5"], "scale": "(x - low) / (high - low)"}


def test_version_1_and_listed_files(tumours: Path, made: Manifest, tmp_path: Path):
    labels = {"0": "background", "1": "oedema", "2": "core", "3": "enhancing", "4": "ignore"}
    no_longer = dict.fromkeys(["channel_names", "file_ending", "regions_class_order"])
    first = copied(
        tumours, tmp_path / "v1", modality={"0": "T1", "1": "FLAIR"}, labels=labels, training=[], **no_longer
    )
    old = prepare("nnunet", [first], tmp_path / "tumours", seeds=[1])
    assert old.classes == ["background", "oedema", "core", "enhancing"]
    names = sorted(path.name.removesuffix(".nii.gz") for path in (tumours / "labelsTr").iterdir())
    cases = {
        name: {"images": [f"scans/{name}_{n:04d}.nii.gz" for n in (0, 1)], "label": f"./labelsTr/{name}.nii.gz"}
        for name in names
    }
    second = copied(tumours, tmp_path / "listed", dataset=cases)
    (second / "imagesTr").rename(second / "scans")
    listed = prepare("nnunet", [second], tmp_path / "again" / "tumours", seeds=[1])
    for other in (old, listed):
        assert [own.sha256 for own in other.shards] != []
        readers = Reader(made), Reader(other)
        for row in range(len(readers[0])):
            np.testing.assert_array_equal(readers[0].image(row), readers[1].image(row))
            np.testing.assert_array_equal(readers[0].mask(row), readers[1].mask(row))
    cases[names[0]]["images"].pop()
    third = copied(second, tmp_path / "short", dataset=cases)
    refused(third, tmp_path, rf"case {names[0]} has 1 images, dataset.json names 2 \(T1, FLAIR\)")
    cases[names[0]]["images"].append("scans/other.nii.gz")
    fourth = copied(second, tmp_path / "absent", dataset=cases)
    refused(fourth, tmp_path, rf"scans/other.nii.gz: is not there, dataset.json lists it for case {names[0]}")


def test_what_is_refused_of_channels(tumours: Path, tmp_path: Path):
    tree = copied(tumours, tmp_path / "in")
    path = tree / "imagesTr" / "tumour_003_0001.nii.gz"
    path.rename(tmp_path / "kept.nii.gz")
    refused(tree, tmp_path, r"tumour_003_0000.nii.gz: its channel _0001 \(FLAIR\) is missing; add the file")
    image = nibabel.load(tmp_path / "kept.nii.gz")
    nibabel.Nifti1Image(np.asarray(image.dataobj)[..., :5], image.affine).to_filename(path)
    refused(
        tree, tmp_path, r"tumour_003_0001.nii.gz: has shape \(32, 32, 5\), tumour_003_0000.nii.gz has \(32, 32, 6\)"
    )
    refused(tumours, tmp_path, "--intensity zscore: give nnunet or percentiles", intensity="zscore")
    refused(tumours, tmp_path, "--range: is for one channel", range=(0, 100))


def test_pictures_of_several_files(tmp_path: Path):
    tree = synth.write("nnunet:slice_channels", tmp_path / "source", n=8, size=32) / "Dataset044_Vessels"
    made = prepare("nnunet", [tree], tmp_path / "vessels", seeds=[1])
    assert verify(made.root, deep=True).problems == []
    assert (made.channels, made.content.channel_files, made.channel_names) == (2, [1, 1], ["rgb_to_0_1", "depth"])
    reader = Reader(made)
    name = reader.key(2).removeprefix("vessels_")
    grey, depth = (np.asarray(Image.open(tree / "imagesTr" / f"{name}_{n:04d}.png")).astype(float) for n in (0, 1))
    np.testing.assert_allclose(reader.image(2)[..., 0], grey / 255, atol=1e-6)
    np.testing.assert_allclose(reader.image(2)[..., 1], (depth - depth.mean()) / depth.std(), atol=1e-4)
    wrong = copied(tree, tmp_path / "in", channel_names={"0": "grey", "1": "depth", "2": "other"})
    refused(
        wrong, tmp_path, r"names 3 channels \(grey, depth, other\), the files of a case have 2 \(1 \+ 1\); name each"
    )
    path = wrong / "imagesTr" / f"{name}_0001.png"
    Image.open(path).crop((0, 0, 20, 20)).save(path)
    (wrong / "dataset.json").write_text((tree / "dataset.json").read_text())
    refused(wrong, tmp_path, rf"{name}_0001.png: is 20 x 20, {name}_0000.png is 32 x 24; give the channels of an image")


# Back to nnU-Net ------------------------------------------------------------------------------------------------------


def test_channels_regions_and_ignored_voxels_come_back_as_they_were(tumours: Path, made: Manifest, tmp_path: Path):
    done = nnunet_folder.export(made.root, tmp_path, 7)
    told, before = (json.loads((Path(place) / "dataset.json").read_text()) for place in (done.folder, tumours))
    assert list(told["labels"].items()) == list(before["labels"].items()), "in the order that regions_class_order is of"
    assert {key: told[key] for key in ("channel_names", "regions_class_order", "file_ending")} == {
        key: before[key] for key in ("channel_names", "regions_class_order", "file_ending")
    }
    compared = 0
    for part in ("Tr", "Ts"):
        for kind in ("images", "labels"):
            for path in sorted((Path(done.folder) / f"{kind}{part}").iterdir()):
                own = nibabel.load(path)
                truth = nibabel.load(tumours / f"{kind}Tr" / path.name.removeprefix("tumours_"))
                np.testing.assert_array_equal(own.dataobj, truth.dataobj)
                np.testing.assert_allclose(own.affine, truth.affine, atol=1e-4)
                compared += 1
    assert compared == 8 * 3
    again = prepare("nnunet", [Path(done.folder)], tmp_path / "tumours", seeds=[1])
    assert (again.classes, again.content.regions) == (made.classes, made.content.regions)


def test_pictures_come_back_as_they_were(tmp_path: Path):
    tree = synth.write("nnunet:slice_channels", tmp_path / "source", n=8, size=32) / "Dataset044_Vessels"
    made = prepare("nnunet", [tree], tmp_path / "vessels", seeds=[1])
    done = nnunet_folder.export(made.root, tmp_path, 7)
    paths = sorted(Path(done.folder).glob("imagesT*/*.png"))
    for path in paths:
        own, truth = Image.open(path), Image.open(tree / "imagesTr" / path.name.removeprefix("vessels_"))
        assert own.mode == truth.mode
        np.testing.assert_array_equal(own, truth)
    assert len(paths) == 8 * 2


@pytest.mark.slow
@pytest.mark.skipif(find_spec("nnunetv2") is None, reason="nnU-Net is not installed")
@pytest.mark.parametrize("form", ["channels", "ct", "slice_channels"])
def test_nnunet_accepts_it(form: str, tmp_path: Path):
    tree = synth.write(f"nnunet:{form}", tmp_path / "source", n=8, size=32)
    made = prepare("nnunet", [tree], tmp_path / "set", seeds=[1])
    done = nnunet_folder.export(made.root, tmp_path, 5)
    code = (
        "import sys\nif __name__ == '__main__':\n"
        "    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity\n"
        "    verify_dataset_integrity(sys.argv[1], num_processes=1)\n"
    )
    (tmp_path / "check.py").write_text(code)
    said = subprocess.run(
        [sys.executable, tmp_path / "check.py", done.folder], capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stderr
    assert "verify_dataset_integrity Done." in said.stdout
    assert not any(word in said.stdout for word in ("ERROR", "Error", "Warning: "))
