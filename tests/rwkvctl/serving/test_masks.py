"""What a server answers with: the masks of `rwkvctl predict`, in the form that is asked for."""

from __future__ import annotations

import gzip
import io
import json
import re
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from rwkv_unet import fuse_for_inference
from rwkvctl.data.images import itk
from rwkvctl.models import bundle
from rwkvctl.models.ensemble import Member, Segmenter
from rwkvctl.models.predict import plan, predict_one

from ..data.images.dicom_series import write_ct
from .conftest import Served, served, until

PAGE = Path(__file__).parents[3] / "docs" / "serving.md"


@pytest.fixture(scope="module")
def pictures(colour_model: Path) -> Iterator[Served]:
    with served(str(colour_model)) as server:
        yield server


@pytest.fixture(scope="module")
def scans(ct_model: Path) -> Iterator[Served]:
    with served(str(ct_model)) as server:
        yield server


def predicted(model: Path, path: Path, out: Path) -> bytes:
    """The mask's file, as the job `predict` writes it."""
    network, info = bundle.load(model)
    [target] = plan([path], info, out).targets
    return predict_one(Segmenter([Member(fuse_for_inference(network), info)]), path, target).mask.read_bytes()


def picture(kind: str, seed: int = 0, size: tuple[int, int] = (50, 70)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP"])
def test_an_image_has_the_mask_that_predict_writes(pictures: Served, colour_model: Path, tmp_path: Path, kind: str):
    path = tmp_path / f"image.{kind.lower()}"
    path.write_bytes(picture(kind))
    expected = predicted(colour_model, path, tmp_path / "masks")
    with Image.open(io.BytesIO(expected)) as mask:
        assert len(np.unique(np.asarray(mask))) > 1, "a mask that could be wrong"
    reply = pictures.post(("no name says what it is", path.read_bytes()))
    assert (reply.status, reply.headers["content-type"]) == (200, "image/png")
    assert reply.body == expected
    assert reply.headers["x-model-weights"] == bundle.read_info(colour_model).weights_sha256
    assert reply.headers["x-model-version"] == reply.headers["x-model-weights"][:12]


def test_the_numbers_of_an_image(pictures: Served):
    about = pictures.post(("a", picture("PNG")), accept="application/json").json()
    assert about["classes"] == ["background", "liver", "tumour"]
    assert 0 < sum(about["voxels"].values()) <= 50 * 70
    assert about["ml"] == {}


@pytest.fixture(scope="module")
def nifti(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan that is stored neither in the model's axes nor upright."""
    folder = tmp_path_factory.mktemp("scans")
    voxels = np.random.default_rng(2).integers(-300, 500, (20, 26, 11)).astype(np.int16)
    affine = np.array([[0, 0, -2.5, 3], [0.8, 0, 0, 4], [0, 0.7, 0, 5], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(voxels, affine), folder / "ct.nii.gz")
    (folder / "ct.nii").write_bytes(gzip.decompress((folder / "ct.nii.gz").read_bytes()))
    return folder / "ct.nii.gz"


def test_a_nifti_scan_has_the_file_that_predict_writes(scans: Served, ct_model: Path, nifti: Path, tmp_path: Path):
    packed, plain = nifti.read_bytes(), nifti.with_suffix("").read_bytes()
    expected = {
        "application/gzip": predicted(ct_model, nifti, tmp_path / "packed"),
        "application/x-nifti": predicted(ct_model, nifti.with_suffix(""), tmp_path / "plain"),
    }
    assert gzip.decompress(expected["application/gzip"]) == expected["application/x-nifti"]
    for kind, mask in expected.items():
        for upload in (packed, plain):
            reply = scans.post(("x", upload), accept=kind)
            assert (reply.status, reply.headers["content-type"]) == (200, kind)
            assert reply.body == mask
    assert scans.post(("x", packed)).headers["content-type"] == "application/gzip"
    assert scans.post(("x", plain)).headers["content-type"] == "application/x-nifti"


def test_a_scan_of_several_volumes(scans: Served, ct_model: Path, tmp_path: Path):
    voxels = np.random.default_rng(3).integers(-300, 500, (12, 14, 5, 3)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "cine.nii")
    upload = (tmp_path / "cine.nii").read_bytes()
    assert scans.post(("x", upload)).body == predicted(ct_model, tmp_path / "cine.nii", tmp_path / "masks")
    reply = scans.post(("x", upload), accept="application/vnd.rwkvctl.slices")
    about = json.loads(reply.body.partition(b"\n")[0])
    assert (about["depth"], about["shape"]) == (5, [12, 14, 5, 3])


def test_the_volumes_of_a_scan(scans: Served, nifti: Path, tmp_path: Path):
    mask = scans.post(("x", nifti.read_bytes()), accept="application/x-nifti").body
    ids = np.asarray(nibabel.Nifti1Image.from_bytes(mask).dataobj)
    about = scans.post(("x", nifti.read_bytes()), accept="application/json").json()
    for number, name in ((1, "liver"), (2, "tumour")):
        assert about["voxels"][name] == (ids == number).sum()
        assert about["ml"][name] == pytest.approx((ids == number).sum() * 0.8 * 0.7 * 2.5 / 1000, abs=1e-3)
    assert about["shape"] == [20, 26, 11]


def packed_series(series: Path) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("study/README.txt", "not a slice")
        for file in sorted(series.iterdir()):
            archive.write(file, f"study/series 1/{file.name}")
    return packed.getvalue()


def test_dicom_nrrd_and_mha_are_answered_on_their_grid(scans: Served, ct_model: Path, tmp_path: Path):
    series = write_ct(tmp_path / "series", np.random.default_rng(1).integers(-200, 300, (24, 32, 6)))
    image, _ = itk.read_series(series, itk.read(series).files)
    for name in ("ct.nrrd", "ct.mha"):
        sitk.WriteImage(image, str(tmp_path / name))
    packed = packed_series(series)
    expected = predicted(ct_model, series, tmp_path / "masks")
    reply = scans.post(("series.zip", packed))
    assert (reply.status, reply.headers["content-type"]) == (200, "application/gzip"), reply
    assert gzip.decompress(reply.body) == gzip.decompress(expected)
    found = sitk.ReadImage(str(written(tmp_path / "series.nii.gz", reply.body)))
    reply = scans.post(("series.zip", packed), accept="application/dicom")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/dicom"), reply
    segments = highdicom.seg.segread(io.BytesIO(reply.body))
    assert [segment.SegmentLabel for segment in segments.SegmentSequence] == ["liver", "tumour"]
    shown = segments.get_volume(combine_segments=True).array
    np.testing.assert_array_equal(shown[::-1], sitk.GetArrayFromImage(found))  # from head to feet
    for name in ("ct.nrrd", "ct.mha"):
        refusal = scans.post((name, (tmp_path / name).read_bytes()), accept="application/dicom")
        assert (refusal.status, "no DICOM series is answered with" in refusal.error) == (406, True)
        reply = scans.post((name, (tmp_path / name).read_bytes()))
        assert reply.status == 200, reply
        other = sitk.ReadImage(str(written(tmp_path / f"{name}.nii.gz", reply.body)))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(other), sitk.GetArrayFromImage(found))
        assert other.GetSpacing() == pytest.approx(image.GetSpacing())
        assert other.GetOrigin() == pytest.approx(image.GetOrigin())


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_image_and_mask_for_the_page(scans: Served, pictures: Served, nifti: Path):
    reply = scans.post(("x", nifti.read_bytes()), accept="application/vnd.rwkvctl.slices")
    line, _, rest = reply.body.partition(b"\n")
    about = json.loads(line)
    size = about["depth"] * about["height"] * about["width"]
    assert sorted((about["depth"], about["height"], about["width"])) == [11, 20, 26]
    assert len(rest) == 2 * size
    mask = np.frombuffer(rest, np.uint8, offset=size)
    assert (mask == 1).sum() == about["voxels"]["liver"]
    reply = pictures.post(("x", picture("PNG")), accept="application/vnd.rwkvctl.slices")
    line, _, rest = reply.body.partition(b"\n")
    assert json.loads(line)["channels"] == 3
    with Image.open(io.BytesIO(picture("PNG"))) as image:
        assert rest[: 50 * 70 * 3] == np.asarray(image).tobytes()


def test_requests_at_once_share_batches_and_have_the_masks_of_one_alone(colour_model: Path):
    uploads = [picture("PNG", seed) for seed in range(8)]
    with served(str(colour_model), batch=1) as alone:
        expected = [alone.post(("x", upload)).body for upload in uploads]
        assert alone.replica.follower.served.network.batches == 8
    with served(str(colour_model), at_once=8, batch=8) as together:
        network = together.replica.follower.served.network
        assert together.ask("GET", "/model").json()["batches_of"] == sorted(network.sizes)
        found: dict[int, bytes] = {}
        with network._running:  # until all have come
            threads = [
                threading.Thread(target=lambda n=n: found.update({n: together.post(("x", uploads[n])).body}))
                for n in range(8)
            ]
            for thread in threads:
                thread.start()
            until(lambda: len(network._waiting) == 8)
        for thread in threads:
            thread.join()
    assert [found[n] for n in range(8)] == expected
    assert len(set(expected)) > 1
    assert network.slices == 8
    assert network.batches == 8 // max(network.sizes)


def test_nothing_of_an_upload_is_left(scans: Served, nifti: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t"))
    (tmp_path / "t").mkdir()
    assert scans.post(("x", nifti.read_bytes())).status == 200
    assert list((tmp_path / "t").iterdir()) == []


def test_the_lines_of_the_page_give_masks(scans: Served, nifti: Path, tmp_path: Path):
    """By bash and curl, on the files that they name."""
    lines = re.findall(r"^    (curl -F .*)$", PAGE.read_text(), re.MULTILINE)
    assert len(lines) == 4
    (tmp_path / "image.png").write_bytes(picture("PNG"))
    (tmp_path / "ct.nii.gz").write_bytes(nifti.read_bytes())
    series = write_ct(tmp_path / "series", np.random.default_rng(1).integers(-200, 300, (24, 32, 6)))
    (tmp_path / "series.zip").write_bytes(packed_series(series))
    for line in lines:
        command = line.replace("127.0.0.1:8000", f"127.0.0.1:{scans.port}").replace("curl ", "curl -sSf ", 1)
        subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, capture_output=True)
    with Image.open(tmp_path / "mask.png") as mask:
        assert mask.size == (70, 50)
    assert nibabel.load(tmp_path / "mask.nii.gz").shape == nibabel.load(tmp_path / "ct.nii.gz").shape
    assert highdicom.seg.segread(tmp_path / "mask.dcm").Modality == "SEG"
