"""Whole volumes through windows, against MONAI's inferer, PyTorch's own interpolation, SimpleITK and nibabel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import SlidingWindowInferer
from torch import Tensor, nn

import rwkv_unet
from rwkvctl.base.errors import UserError
from rwkvctl.data.feed.resample import resize_image, resize_maps, shape_at
from rwkvctl.data.images import intensity
from rwkvctl.models import bring, volumes, windows
from rwkvctl.models.bundle import BundleInfo, VolumeInput
from rwkvctl.models.ensemble import Member, Options, Segmenter
from rwkvctl.models.inference import best_class
from rwkvctl.models.memory import Memory
from rwkvctl.models.predict import predict_files

from ..data.images.dicom_series import write_ct

PATCH = (4, 16, 16)


class Lately(nn.Module):
    """Three classes by two convolutions over three axes: what it says of a voxel depends on where the window ends."""

    def __init__(self, channels: int = 1, classes: int = 3, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(
            nn.Conv3d(channels, 4, 3, padding=1, bias=False), nn.Tanh(), nn.Conv3d(4, classes, 3, padding=1, bias=False)
        )
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.shapes.append(tuple(x.shape))
        return 5 * self.layers(4 * x - 2)


def info(spacing: Any = None, patch: Any = PATCH, **fields: Any) -> BundleInfo:
    own = {
        "model": {"name": "rwkv_unet_3d_t"}, "classes": ["background", "a", "b"], "image_size": patch[1:],
        "image_kind": "float", "channels": 1, "volumes": {"patch": patch, "spacing": spacing},
    }  # fmt: skip
    return BundleInfo.model_validate(own | fields)


def volume(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, np.float32)


def plainly(model: nn.Module, image: np.ndarray, patch: Any, shape: Any = None, overlap: float = 0.5) -> Tensor:
    """Logits (classes, D, H, W) as a script has them: resize, MONAI's inferer, resize back, everything at once."""
    x = torch.from_numpy(image if image.ndim == 4 else image[..., None]).movedim(-1, 0)
    inferer = SlidingWindowInferer(patch, 1, overlap, mode="gaussian", padding_mode="replicate")
    with torch.inference_mode():
        logits = inferer(resize_image(x, shape or tuple(x.shape[1:]))[None], model)
        assert isinstance(logits, Tensor)
        return F.interpolate(logits, x.shape[1:], mode="trilinear", align_corners=False)[0]


# Windows ------------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(size=st.integers(1, 60), side=st.integers(1, 20), overlap=st.sampled_from([0, 0.25, 0.5, 0.75, 0.9]))
def test_windows_lie_where_monai_has_them(size: int, side: int, overlap: float):
    found = windows.spans(size, side, overlap)
    if size <= side:
        [only] = found
        before = only.own.start
        assert (only.inside, before, side - only.own.stop) == (
            slice(0, size),
            (side - size) // 2,
            -(-(side - size) // 2),
        )
        return
    expected = dense_patch_slices((size,), (side,), (max(1, int(side * (1 - overlap))),))
    assert [(window.inside,) for window in found] == expected
    assert all(window.own == slice(0, side) for window in found)


@pytest.mark.parametrize("patch", [(4, 16, 16), (1, 8, 6), (20, 24, 28)])
def test_weights_are_those_of_monai(patch: tuple[int, int, int]):
    expected = compute_importance_map(patch, "gaussian", 0.125).numpy()
    np.testing.assert_allclose(windows.weights_of(patch), expected, rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(depth=st.integers(1, 12), wanted=st.integers(1, 30))
def test_slices_between_slices_are_those_of_torch(depth: int, wanted: int):
    maps = torch.rand(2, depth, 3, 4)
    found = torch.stack(list(windows.across(iter(maps.movedim(1, 0)), depth, wanted)), dim=1)
    torch.testing.assert_close(found, resize_maps(maps, (wanted, 3, 4)), rtol=0, atol=1e-5)


# A volume -----------------------------------------------------------------------------------------------------------

SHAPES = [(11, 37, 50), (4, 16, 16), (3, 40, 9), (1, 20, 30), (9, 16, 17)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("overlap", [0.5, 0.25])
def test_a_volume_as_it_is_gives_what_monai_gives(shape: tuple[int, int, int], overlap: float):
    model, image = Lately().eval(), volume(*shape)
    expected = plainly(model, image, PATCH, overlap=overlap)
    own = info().model_copy(update={"volumes": info().volumes.model_copy(update={"overlap": overlap})})  # type: ignore[union-attr]
    model.shapes.clear()
    found = Segmenter([Member(model, own)], Options(probabilities=True)).segment(image)
    assert {each[1:] for each in model.shapes} == {(1, *PATCH)}
    np.testing.assert_allclose(found.probabilities, expected.softmax(dim=0), atol=1e-3)  # type: ignore[arg-type]
    plain = Segmenter([Member(model, own)]).segment(image)
    assert np.array_equal(plain.mask, expected.argmax(dim=0).numpy())
    assert np.array_equal(found.mask, plain.mask)
    assert plain.sureness.predicted_dsc == pytest.approx(found.sureness.predicted_dsc)  # type: ignore[union-attr]


@pytest.mark.parametrize("spacing", [(5.0, 0.7, 0.8), (0.9, 0.9, 0.9), (1.0, 2.0, 2.0), (4.0, 1.6, 1.7)])
@pytest.mark.parametrize("channels", [1, 2])
def test_at_another_spacing_it_gives_what_a_plain_script_gives(
    spacing: tuple[float, float, float], channels: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(bring, "AT_ONCE", 900)  # some slices, some rows at a time
    wanted, native = (2.5, 1.1, 1.3), (11, 37, 50)
    image = volume(*native, *([channels] if channels > 1 else []))
    model, shape = Lately(channels).eval(), shape_at(native, spacing, wanted)
    expected = plainly(model, image, PATCH, shape)
    one = Member(model, info(wanted, channels=channels))
    seen = volumes.Seen(model, VolumeInput(patch=PATCH, spacing=wanted), Memory(2))
    logits = list(seen.logits(bring.at_shape(image, shape, volumes.resized), native, [slice(0, 5), slice(5, 11)]))
    torch.testing.assert_close(torch.cat(logits).movedim(0, 1), expected, atol=1e-5, rtol=0)
    found = Segmenter([one]).segment(image, spacing=spacing)
    assert (found.mask != expected.argmax(dim=0).numpy()).mean() < 1e-4  # ties
    assert len(np.unique(found.mask)) == 3


@pytest.mark.parametrize("shape", [(5, 30, 31), (20, 10, 11), (7, 64, 16)])
def test_a_volume_is_brought_to_a_spacing_by_parts_as_by_the_whole(shape: Any, monkeypatch: pytest.MonkeyPatch):
    image = volume(7, 33, 41, 2)
    expected = resize_image(torch.from_numpy(image).movedim(-1, 0), shape).numpy()
    monkeypatch.setattr(bring, "AT_ONCE", 2500)
    np.testing.assert_array_equal(bring.at_shape(image, shape, volumes.resized), expected)


def test_one_logit_is_the_foreground():
    model = Lately(classes=1).eval()
    image, own = volume(9, 20, 24), info(classes=["background", "organ"])
    expected = plainly(model, image, PATCH)
    found = Segmenter([Member(model, own)], Options(probabilities=True)).segment(image)
    assert np.array_equal(Segmenter([Member(model, own)]).segment(image).mask, (expected[0] > 0).numpy())
    np.testing.assert_allclose(found.probabilities[1], expected[0].sigmoid(), atol=1e-3)  # type: ignore[index]
    every = Segmenter([Member(model, own)], Options(thresholds={1: 0.7})).segment(image).mask
    assert (every != (expected[0].sigmoid() >= 0.7).numpy()).mean() < 1e-3


def test_views_of_three_axes_are_those_of_turned_volumes():
    """The windows of this volume lie the same from either end."""
    model, image = Lately().eval(), volume(8, 32, 32)
    for tta, views in (
        ("flips", [[a for a, b in zip((1, 2, 3), bits, strict=True) if b] for bits in np.ndindex(2, 2, 2)]),
        ("rotations", [0, 1, 2, 3]),
    ):
        total = torch.zeros(3, *image.shape)
        for view in views:
            if isinstance(view, int):
                there = np.rot90(image, view, (1, 2)).copy()
                total += torch.rot90(plainly(model, there, PATCH), -view, (2, 3))
            else:
                there = np.flip(image, [axis - 1 for axis in view]).copy()
                total += plainly(model, there, PATCH).flip(view)
        found = Segmenter([Member(model, info())], Options(tta=tta, probabilities=True)).segment(image)  # type: ignore[arg-type]
        np.testing.assert_allclose(found.probabilities, (total / len(views)).softmax(dim=0), atol=1e-3)  # type: ignore[arg-type]


def test_several_models_of_other_spacings_and_temperatures_and_one_of_slices():
    first, second = Lately().eval(), Lately(seed=1).eval()
    image, spacing = volume(9, 24, 30), (3.0, 1.0, 1.0)
    members = [
        Member(first, info((3.0, 2.0, 2.0), calibration={"temperature": 2.0})),
        Member(second, info(patch=(8, 16, 8))),
    ]
    expected = (plainly(first, image, PATCH, (9, 12, 15)) / 2).softmax(dim=0)
    expected = (expected + plainly(second, image, (8, 16, 8)).softmax(dim=0)) / 2
    seen: list[int] = []
    found = Segmenter(members, Options(probabilities=True)).segment(image, spacing=spacing, seen=seen.append)
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-3)  # type: ignore[arg-type]
    assert sum(seen) == 9

    class OfSlices(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(1, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    flat = OfSlices().eval()
    mixed = [Member(flat, info(volumes=None, image_size=[24, 30])), members[1]]
    with torch.inference_mode():
        slices = flat(torch.from_numpy(image)[:, None]).softmax(dim=1).movedim(0, 1)
    found = Segmenter(mixed, Options(probabilities=True)).segment(image)
    expected = (slices + plainly(second, image, (8, 16, 8)).softmax(dim=0)) / 2
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-3)  # type: ignore[arg-type]


def test_less_memory_gives_the_same_mask():
    image = volume(9, 40, 40)
    expected = Segmenter([Member(Lately().eval(), info())]).segment(image).mask

    class Small(Lately):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return super().forward(x)

    small = Small().eval()
    segmenter = Segmenter([Member(small, info())])
    segmenter.memory[0].at_once = 8  # as on a GPU
    np.testing.assert_array_equal(segmenter.segment(image).mask, expected)
    assert segmenter.memory[0].at_once == 2
    assert max(shape[0] for shape in small.shapes) == 2


def test_the_networks_of_this_project():
    torch.manual_seed(0)
    model = rwkv_unet.create_model("rwkv_unet_3d_t", num_classes=3, in_channels=1).eval()
    image, own = volume(10, 40, 33), info(patch=(8, 32, 32))
    expected = best_class(plainly(model, image, (8, 32, 32)).movedim(0, 1)).numpy()
    found = Segmenter([Member(rwkv_unet.fuse_for_inference(model), own)]).segment(image).mask
    assert (found != expected).mean() < 1e-3


@pytest.mark.parametrize(
    ("image", "line"),
    [
        (volume(20, 30), r"^is float32 \(20, 30\), and the model takes whole volumes, \(D, H, W\): give a scan$"),
        (np.zeros((20, 30, 3), np.uint8), r"^is uint8 \(20, 30, 3\), and the model takes whole volumes"),
        (volume(5, 6, 7, 2), r"^is float32 \(5, 6, 7, 2\), and the model takes whole volumes"),
        (volume(5, 20, 30), r"^has no spacing, and the model takes volumes at 2.5 x 1 x 1 mm \(z, y, x\): give a scan"),
    ],
)
def test_what_a_network_over_three_axes_does_not_see(image: np.ndarray, line: str):
    with pytest.raises(UserError, match=line):
        Segmenter([Member(Lately().eval(), info((2.5, 1.0, 1.0)))]).segment(image)


def test_values_that_are_not_finite_and_tiles_are_refused():
    image = volume(5, 20, 30)
    image[3, 4, 5] = np.nan
    with pytest.raises(UserError, match="holds NaN"):
        Segmenter([Member(Lately().eval(), info())]).segment(image)
    with pytest.raises(UserError, match=r"^--tile: the model sees volumes, always through a window; leave it out$"):
        Segmenter([Member(Lately().eval(), info())], Options(tile=0.5))


# Files --------------------------------------------------------------------------------------------------------------


def for_scans(spacing: Any) -> BundleInfo:
    return info(spacing, intensity=intensity.rule(-100, 100), orientation="itk")


def expected_of(path: Path, model: nn.Module, wanted: Any) -> np.ndarray:
    """[z, y, x] of a file whose axes are ITK's own, by SimpleITK, and a plain script."""
    image = sitk.ReadImage(str(path))
    values = (np.clip(sitk.GetArrayFromImage(image).astype(np.float32), -100, 100) + 100) / 200
    shape = shape_at(values.shape, image.GetSpacing()[::-1], wanted)
    return plainly(model, values, PATCH, shape).argmax(dim=0).numpy()


def oblique() -> np.ndarray:
    a, b = np.deg2rad(20), np.deg2rad(-12)
    z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return z @ x


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("is_oblique", [False, True])
def test_a_scan_is_read_at_its_spacing_and_its_mask_lies_on_its_grid(tmp_path: Path, ending: str, is_oblique: bool):
    values = np.random.default_rng(3).integers(-150, 150, (9, 30, 26)).astype(np.int16)
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((0.9, 0.8, 3.2))
    image.SetOrigin((-40.0, 12.0, 7.0))
    if is_oblique:
        image.SetDirection(oblique().ravel().tolist())
    path = tmp_path / f"scan{ending}"
    sitk.WriteImage(image, str(path))
    model, wanted = Lately().eval(), (2.0, 1.0, 1.0)
    [written] = predict_files(model, for_scans(wanted), [path], tmp_path / "masks")
    found = sitk.ReadImage(str(written))
    expected = expected_of(path, model, wanted)
    assert (sitk.GetArrayFromImage(found) != expected).mean() < 1e-3
    assert len(np.unique(expected)) == 3
    for name in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(found, name)(), getattr(image, name)(), atol=1e-4)


@pytest.mark.parametrize("axes", ["LPS", "RAS", "ASR", "PIR"])
def test_the_same_body_in_any_axes_gets_the_same_mask(tmp_path: Path, axes: str):
    values = np.random.default_rng(3).integers(-150, 150, (26, 30, 9)).astype(np.int16)
    body = nibabel.Nifti1Image(values, np.diag([-0.9, -0.8, 3.2, 1]))  # LPS
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(body.affine), nibabel.orientations.axcodes2ornt(axes)
    )
    model, wanted = Lately().eval(), (2.0, 1.0, 1.0)
    for name, image in (("body", body), ("turned", body.as_reoriented(turn))):
        nibabel.save(image, tmp_path / f"{name}.nii.gz")
    first, second = predict_files(
        model, for_scans(wanted), [tmp_path / "body.nii.gz", tmp_path / "turned.nii.gz"], tmp_path / "masks"
    )
    expected = nibabel.load(first).as_reoriented(turn)
    np.testing.assert_array_equal(np.asarray(nibabel.load(second).dataobj), np.asarray(expected.dataobj))
    np.testing.assert_allclose(nibabel.load(second).affine, expected.affine, atol=1e-5)


def test_volumes_of_a_4d_scan_are_seen_at_its_spacing(tmp_path: Path):
    values = np.random.default_rng(3).integers(-150, 150, (26, 30, 9, 2)).astype(np.int16)
    image = nibabel.Nifti1Image(values, np.diag([-0.9, -0.8, 3.2, 1]))
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, tmp_path / "times.nii.gz")
    model, wanted = Lately().eval(), (2.0, 1.0, 1.0)
    singles = []
    for time in range(2):
        nibabel.save(nibabel.Nifti1Image(values[..., time], image.affine), tmp_path / f"{time}.nii.gz")
        singles.append(tmp_path / f"{time}.nii.gz")
    written = predict_files(model, for_scans(wanted), [tmp_path / "times.nii.gz", *singles], tmp_path / "masks")
    every, *each = [np.asarray(nibabel.load(path).dataobj) for path in written]
    np.testing.assert_array_equal(every, np.stack(each, axis=-1))


def test_files_without_a_spacing(tmp_path: Path):
    np.save(tmp_path / "v.npy", volume(5, 20, 30))
    model = Lately().eval()
    line = rf"^input {tmp_path}/v.npy: has no spacing, and the model takes volumes at 2 x 1 x 1 mm"
    with pytest.raises(UserError, match=line):
        predict_files(model, info((2.0, 1.0, 1.0)), [tmp_path / "v.npy"], tmp_path / "masks")
    [written] = predict_files(model, info(), [tmp_path / "v.npy"], tmp_path / "masks")
    expected = plainly(model, volume(5, 20, 30), PATCH).argmax(dim=0).numpy()
    np.testing.assert_array_equal(np.load(written), expected)


def test_a_dicom_series_is_seen_at_its_spacing(tmp_path: Path):
    hounsfield = np.random.default_rng(3).integers(-150, 150, (9, 30, 26)).astype(np.int16)
    write_ct(tmp_path / "series", hounsfield, spacing=(0.8, 0.9, 3.2))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "series")))
    sitk.WriteImage(series := reader.Execute(), str(tmp_path / "series.mha"))
    model, wanted = Lately().eval(), (2.0, 1.0, 1.0)
    [written] = predict_files(model, for_scans(wanted), [tmp_path / "series"], tmp_path / "masks")
    found, expected = sitk.ReadImage(str(written)), expected_of(tmp_path / "series.mha", model, wanted)
    assert (sitk.GetArrayFromImage(found) != expected).mean() < 1e-3
    np.testing.assert_allclose(found.GetSpacing(), series.GetSpacing(), atol=1e-4)
    np.testing.assert_allclose(found.GetOrigin(), series.GetOrigin(), atol=1e-3)


def test_channels_in_files_of_their_own(tmp_path: Path):
    values = np.random.default_rng(3).integers(-150, 150, (2, 26, 30, 9)).astype(np.int16)
    for number, channel in enumerate(values):
        image = nibabel.Nifti1Image(channel, np.diag([-0.9, -0.8, 3.2, 1]))
        nibabel.save(image, tmp_path / f"case_{number:04d}.nii.gz")
    rules = {"channels": [intensity.rule(-100, 100), intensity.rule(-50, 50)]}
    model, wanted = Lately(2).eval(), (2.0, 1.0, 1.0)
    own = info(wanted, channels=2, intensity=rules, orientation="itk")
    [written] = predict_files(model, own, [tmp_path / "case_0000.nii.gz"], tmp_path / "masks")
    scaled = [(np.clip(v, -top, top) + np.float32(top)) / (2 * top) for v, top in zip(values, (100, 50), strict=True)]
    stacked = np.stack([each.transpose(2, 1, 0) for each in scaled], axis=-1).astype(np.float32)
    shape = shape_at((9, 30, 26), (3.2, 0.8, 0.9), wanted)
    expected = plainly(model, stacked, PATCH, shape).argmax(dim=0).numpy()
    found = np.asarray(nibabel.load(written).dataobj).transpose(2, 1, 0)
    assert (found != expected).mean() < 1e-3
