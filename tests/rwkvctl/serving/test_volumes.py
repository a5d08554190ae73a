"""A server of a network over three axes: whole scans, by the masks of `rwkvctl predict`."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from rwkv_unet import create_model, fuse_for_inference
from rwkvctl.data.images import intensity
from rwkvctl.models import bundle
from rwkvctl.models.ensemble import Member, Segmenter
from rwkvctl.models.predict import plan, predict_one

from ..data.images.dicom_series import write_ct
from .conftest import Served, served
from .test_masks import picture


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = create_model("rwkv_unet_3d_t", num_classes=3, in_channels=1).eval()
    with torch.no_grad():
        network.head.bias -= network(torch.rand(1, 1, 8, 32, 32)).mean(dim=(0, 2, 3, 4))
    info = bundle.BundleInfo.model_validate(
        {
            "model": {"name": "rwkv_unet_3d_t", "num_classes": 3, "in_channels": 1},
            "classes": ["background", "liver", "tumour"], "image_size": (32, 32), "image_kind": "float", "channels": 1,
            "volumes": {"patch": (8, 32, 32), "spacing": (4.0, 2.0, 2.0)},
            "intensity": intensity.rule(-125, 275), "orientation": "itk",
        }
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("volumetric") / "model"
    bundle.save(folder, network.state_dict(), info)
    return folder


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Served]:
    with served(str(model)) as running:
        yield running


def predicted(model: Path, path: Path, out: Path) -> bytes:
    network, info = bundle.load(model)
    [target] = plan([path], info, out).targets
    return predict_one(Segmenter([Member(fuse_for_inference(network), info)]), path, target).mask.read_bytes()


def test_a_nifti_file_gets_the_mask_of_predict(server: Served, model: Path, tmp_path: Path):
    values = np.random.default_rng(0).integers(-300, 500, (40, 44, 6)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-1.5, -1.25, 4, 1])), path := tmp_path / "scan.nii.gz")
    reply = server.post(("scan.nii.gz", path.read_bytes()))
    assert reply.status == 200
    expected = gzip.decompress(predicted(model, path, tmp_path / "out"))
    assert gzip.decompress(reply.body) == expected
    assert len(np.unique(np.frombuffer(expected[352:], np.uint8))) > 1, "a mask that could be wrong"


def test_a_dicom_series_gets_the_mask_of_predict(server: Served, model: Path, tmp_path: Path):
    write_ct(tmp_path / "series", np.random.default_rng(0).integers(-300, 500, (7, 40, 36)).astype(np.int16))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for file in sorted((tmp_path / "series").iterdir()):
            archive.write(file, file.name)
    reply = server.post(("series.zip", packed.getvalue()))
    assert reply.status == 200
    expected = predicted(model, tmp_path / "series", tmp_path / "out")
    found, wanted = (nibabel.Nifti1Image.from_bytes(gzip.decompress(data)) for data in (reply.body, expected))
    np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(wanted.dataobj))
    np.testing.assert_allclose(found.affine, wanted.affine)


def test_pictures_are_refused_and_what_is_taken_is_told(server: Served):
    reply = server.post(("a.png", picture("PNG")))
    assert reply.status == 422
    assert "takes whole volumes, (D, H, W): give a scan" in reply.error
    told = server.ask("GET", "/model").json()["input"]
    assert (told["kind"], told["seen_at"], told["spacing"]) == ("scans", [8, 32, 32], [4.0, 2.0, 2.0])
