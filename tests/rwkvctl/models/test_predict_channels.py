"""What a model of several channels is given: files of a case, arrays, 4-D scans; and exported rules."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image

from rwkvctl.base.errors import UserError
from rwkvctl.data.images import normalise
from rwkvctl.data.images.normalise import Rule
from rwkvctl.models import export_rules, onnx_model, predict_channels
from rwkvctl.models.bundle import BundleInfo
from rwkvctl.models.predict import plan, read
from rwkvctl.models.predict_record import sha256_of

DEVIATIONS = Rule(normalise.TO_DEVIATIONS, over="nonzero")
RNG = np.random.default_rng(5)


def model(rules: list[Rule], **fields) -> BundleInfo:
    given = {
        "model": {"name": "rwkv_unet_xt", "num_classes": 1, "in_channels": len(rules)},
        "classes": ["background", "x"],
        "image_size": 32,
        "image_kind": "float",
        "channels": len(rules),
        "channel_names": ["T1", "FLAIR", "T2"][: len(rules)],
        "intensity": normalise.as_fields(rules),
        "orientation": "itk",
    }
    return BundleInfo.model_validate(given | fields)


TWO = model([DEVIATIONS, DEVIATIONS])


def scan(path: Path, shape: tuple[int, ...] = (10, 12, 4), affine=None) -> np.ndarray:
    values = np.maximum(RNG.normal(300, 200, shape), 0).round().astype(np.int16)
    nibabel.Nifti1Image(values, np.diag([-1, -1, 2, 1]) if affine is None else affine).to_filename(path)
    return values


@pytest.fixture
def case(tmp_path: Path) -> tuple[Path, list[np.ndarray]]:
    return tmp_path / "a_0000.nii.gz", [scan(tmp_path / f"a_{n:04d}.nii.gz") for n in (0, 1)]


def test_files_of_a_case_are_one_input(case, tmp_path: Path):
    path, values = case
    planned = plan([tmp_path], TWO, tmp_path / "masks")
    assert ([each.name for each in planned.inputs], [each.name for each in planned.targets]) == (
        ["a_0000.nii.gz"], ["a.nii.gz"]
    )  # fmt: skip
    assert plan([tmp_path / "a_0001.nii.gz", path], TWO, tmp_path / "masks").inputs == [path]
    opened = read(TWO, path, tmp_path / "masks" / "a.nii.gz")
    [volume] = opened.volumes
    turned = [own.transpose(2, 1, 0) for own in values]
    expected, _ = normalise.stacked(turned, [DEVIATIONS, DEVIATIONS])
    assert (volume.shape, opened.slices, opened.scan.voxel_ml) == ((4, 12, 10, 2), 4, 0.002)
    np.testing.assert_allclose(volume[:], expected, atol=1e-6)
    assert sha256_of(*predict_channels.files_of(path, TWO)) != sha256_of(path)


def test_channels_of_other_kinds_of_files(case, tmp_path: Path):
    """One stored along other axes, one as NRRD of SimpleITK, and both in one 4-D file."""
    path, values = case
    expected = read(TWO, path, tmp_path / "a.nii.gz").volumes[0][:]
    flipped = np.diag([1.0, -1, 2, 1])
    flipped[0, 3] = -(values[1].shape[0] - 1)
    nibabel.Nifti1Image(values[1][::-1], flipped).to_filename(tmp_path / "a_0001.nii.gz")
    np.testing.assert_array_equal(read(TWO, path, tmp_path / "a.nii.gz").volumes[0][:], expected)
    for number, own in enumerate(values):
        sitk.WriteImage(sitk.GetImageFromArray(own.transpose(2, 1, 0)), tmp_path / f"b_{number:04d}.nrrd")
    first = tmp_path / "b_0000.nrrd"
    np.testing.assert_array_equal(read(TWO, first, tmp_path / "b.nrrd").volumes[0][:], expected)
    nibabel.Nifti1Image(np.stack(values, axis=-1), np.diag([-1, -1, 2, 1])).to_filename(tmp_path / "c.nii.gz")
    np.testing.assert_array_equal(read(TWO, tmp_path / "c.nii.gz", tmp_path / "c").volumes[0][:], expected)


def test_pictures_and_arrays(tmp_path: Path):
    info = model([Rule(clip=(0, 255))] * 3 + [Rule(clip=(0, 4000))], channel_names=None, channel_files=[3, 1])
    colours = RNG.integers(0, 256, (20, 24, 3)).astype(np.uint8)
    depth = RNG.integers(0, 4000, (20, 24)).astype(np.uint16)
    Image.fromarray(colours).save(tmp_path / "p_0000.png")
    Image.fromarray(depth).save(tmp_path / "p_0001.png")
    expected = np.concatenate([colours / 255, depth[..., None] / 4000], axis=-1).astype(np.float32)
    [path] = plan([tmp_path], info, tmp_path / "masks").inputs
    found = read(info, path, tmp_path / "p.png")
    np.testing.assert_allclose(found.volumes[0], expected, atol=1e-6)
    for values in (np.concatenate([colours, depth[..., None]], axis=-1), expected):
        np.save(tmp_path / "q.npy", values)
        np.testing.assert_allclose(read(info, tmp_path / "q.npy", tmp_path / "q").volumes[0], expected, atol=1e-6)
    np.save(tmp_path / "v.npy", np.stack([expected] * 3))
    assert read(info, tmp_path / "v.npy", tmp_path / "v").slices == 3
    assert plan([tmp_path / "v.npy"], info, tmp_path / "masks").targets == [tmp_path / "masks" / "v.npy"]


@pytest.mark.parametrize(("spoil", "line"), [
    (lambda folder: (folder / "a_0001.nii.gz").unlink(),
     r"a_0000.nii.gz: its channel 0001 \(FLAIR\) is missing; the model takes 2 channels \(T1, FLAIR\), add a_0001.nii"),
    (lambda folder: scan(folder / "a_0002.nii.gz"), r"a_0002.nii.gz: is of channel 0002, and the model takes 2"),
    (lambda folder: scan(folder / "a_0001.nii.gz", (10, 12, 5)), r"a_0001.nii.gz: has shape \(10, 12, 5\)"),
    (lambda folder: scan(folder / "b.nii.gz"), r"b.nii.gz: has 1 channel, and the model takes 2 channels \(T1"),
    (lambda folder: np.save(folder / "b.npy", np.zeros((4, 9, 9))), r"must be numbers of shape \(H, W, 2\) or"),
    (lambda folder: Image.new("L", (9, 9)).save(folder / "b.png"), "b.png: the model takes 2 channels"),
], ids=["missing", "more", "shape", "one", "array", "picture"])  # fmt: skip
def test_what_is_refused(case, tmp_path: Path, spoil, line: str):
    def read_all() -> None:
        for path in plan([tmp_path], TWO, tmp_path / "masks").inputs:
            read(TWO, path, tmp_path / "x")

    spoil(tmp_path)
    with pytest.raises(UserError, match=line) as caught:
        read_all()
    assert "\n" not in str(caught.value)


def test_names_of_cases():
    assert predict_channels.case_name(Path("x_0001_0000.nii.gz"), TWO) == "x_0001.nii.gz"
    assert predict_channels.case_name(Path("x_0000.nii.gz"), model([DEVIATIONS], channel_names=None)) == "x_0000.nii.gz"
    assert predict_channels.case_name(Path("x_0000.nii.gz"), model([DEVIATIONS])) == "x.nii.gz"


@pytest.mark.parametrize("rules", [
    [Rule(normalise.TO_DEVIATIONS, over="box"), Rule(clip=("p1", "p99"))],
    [Rule(normalise.TO_DEVIATIONS, (-100, 200), 30.0, 60.0), Rule("x"), Rule(clip=("min", "p100"), over="box")],
    [Rule(normalise.TO_DEVIATIONS)],
], ids=["box", "fixed", "one"])  # fmt: skip
def test_an_exported_file_follows_the_same_rules(rules: list[Rule]):
    values = [RNG.normal(20, 90, (3, 17, 19)).astype(np.float32) for _ in rules]
    for own in values:
        own[:, :4] = own[:, :, 15:] = 0
    found = export_rules.own_numbers(torch.from_numpy(np.stack(values, axis=-1)), rules).numpy()
    expected = np.array([scaling[:4] for scaling in normalise.settled(rules, values)])
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_what_an_exported_file_is_given():
    assert set(onnx_model.numbers(TWO, raw=False)) == {"scaling"}
    assert set(onnx_model.numbers(model([Rule(clip=(0, 1))]), raw=True)) == {"window"}
    np.testing.assert_array_equal(onnx_model.numbers(TWO, raw=False)["scaling"], [export_rules.GIVEN] * 2)
    assert np.isnan(onnx_model.numbers(TWO, raw=True)["scaling"]).all()
