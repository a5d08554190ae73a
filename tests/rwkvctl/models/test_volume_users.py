"""Everything else that takes a model folder, given one of a network over three axes: it works, or says in one line why
not."""

from __future__ import annotations

import base64
import gzip
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from mlflow.exceptions import MlflowException
from PIL import Image

from rwkv_unet import create_model
from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import synth
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.feed.cases import iter_cases
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.models import bundle
from rwkvctl.models.bundle import BundleInfo, VolumeInput
from rwkvctl.models.ensemble import Member, Segmenter
from rwkvctl.models.latency import latency
from rwkvctl.models.predict import predict_files
from rwkvctl.registry import card, hub_form, input_example
from rwkvctl.reports import qualitative
from rwkvctl.training import metrics

SEEN = VolumeInput(patch=(8, 32, 32), spacing=(4.0, 2.0, 2.0))


@pytest.fixture(scope="module")
def spaced(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Volumes of 5 x 60 x 64 voxels of 4 x 1.25 x 1.5 mm."""
    raw = synth.write("decathlon", tmp_path_factory.mktemp("raw") / "spaced")
    return prepare("decathlon", [raw], tmp_path_factory.mktemp("shards") / "spaced", allow_partial=True)


@pytest.fixture(scope="module")
def model(spaced: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With random weights, and a bias with which no class is everywhere the best."""
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"num_classes": len(spaced.classes), "in_channels": 1}
    network = create_model("rwkv_unet_3d_t", **arguments).eval()
    with torch.no_grad():
        network.head.bias -= network(torch.rand(1, 1, *SEEN.patch)).mean(dim=(0, 2, 3, 4))
    info = BundleInfo(
        model={"name": "rwkv_unet_3d_t", **arguments},
        classes=spaced.classes,
        image_size=(32, 32),
        volumes=SEEN,
        image_kind="float",
        channels=1,
        dataset="phantom",
        fingerprint=spaced.fingerprint,
        intensity=spaced.content.intensity,
        orientation=spaced.content.orientation,
        extra={"data": spaced.location, "split": spaced.default_split},
    )
    folder = tmp_path_factory.mktemp("volumetric") / "model"
    bundle.save(folder, network.state_dict(), info)
    return folder


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    values = np.random.default_rng(0).integers(0, 900, (40, 44, 6)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-1.5, -1.25, 4, 1])), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def test_a_registered_model_answers_its_example_and_scans_and_refuses_pictures(model: Path, scan: Path, tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MLflow, about our type hints
        from rwkvctl.registry.pyfunc_model import SegmentationModel

    network, info = bundle.load(model)
    served = SegmentationModel()
    served.members, served.info = [Member(network, info)], info
    example = input_example.example(info)
    [answer] = served.predict(None, [example])  # type: ignore[arg-type]
    given, mask = (nibabel.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(x))) for x in (example, answer))
    assert given.shape == mask.shape == (32, 32, 8)
    assert given.header.get_zooms() == (2.0, 2.0, 4.0)
    [answer] = served.predict(None, [base64.b64encode(scan.read_bytes()).decode()])  # type: ignore[arg-type]
    [written] = predict_files(network, info, [scan], tmp_path / "masks")
    assert gzip.decompress(base64.b64decode(answer)) == gzip.decompress(written.read_bytes())
    assert len(np.unique(np.asarray(nibabel.load(written).dataobj))) > 1, "a mask that could be wrong"
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "a.png")
    for path, said in ((tmp_path / "a.png", "takes whole volumes"), (tmp_path / "v.npy", "has no spacing")):
        np.save(tmp_path / "v.npy", np.zeros((5, 20, 30), np.float32))
        with pytest.raises(MlflowException, match=f"^input 0: .*{said}[^\n]*$"):
            served.predict(None, [base64.b64encode(path.read_bytes()).decode()])  # type: ignore[arg-type]


def test_a_card_says_what_is_seen_and_the_hub_gets_the_model(model: Path, tmp_path: Path):
    info = bundle.read_info(model)
    text = card.as_markdown(card.of_bundle(info, "hearts", 1000))
    assert "Whole volumes at 4 x 2 x 2 mm (z, y, x), in patches of 8 x 32 x 32 voxels. Classes: background" in text
    assert "segmentation of scans like those of the training data" in text
    (tmp_path / "hub").mkdir()
    assert hub_form.write(tmp_path / "hub", model, card.of_bundle(info, "hearts", 1000), "mit").volumes == SEEN
    assert bundle.read_info(tmp_path / "hub").volumes == SEEN


def test_latency_is_that_of_a_patch(model: Path):
    found = latency(model)
    assert found.what == "patch of 8 x 32 x 32 voxels"
    assert found.ms > 0


def test_a_grid_shows_a_slice_of_the_whole_volumes_mask(model: Path, spaced: Manifest):
    one = Member(*bundle.load(model))
    case = next(iter(iter_cases(spaced, split=None, part="test")))
    [row] = qualitative.rows([one], spaced, [case.key])
    z = int(row.place.split()[1]) - 1
    expected = Segmenter([one]).segment(case.image, spacing=case.spacing_mm).mask
    np.testing.assert_array_equal(row.masks[0], expected[z])
    scores = metrics.score_case(expected[z], case.mask[z], len(spaced.classes), hd95=False)
    assert row.dsc == [qualitative.mean_dsc(scores)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("model erf {model} --out {out}/a.png", "takes volumes, and fields of images are drawn here: leave it out"),
        ("model erf rwkv_unet_3d_t --out {out}/a.png", "rwkv_unet_3d_t: takes volumes, and fields of images"),
        ("model compare rwkv_unet_3d_t --size 32", "rwkv_unet_3d_t: takes volumes, and images are measured here"),
        ("model grid {model} --data {binary} --out {out}/a.png", "has the classes"),
    ],
)
def test_what_is_for_images_alone_is_one_line(
    line: str, said: str, model: Path, binary: Manifest, rwkvctl: Callable[[str], Any], tmp_path: Path
):
    done = rwkvctl(line.format(model=model, out=tmp_path, binary=binary.location))
    assert done.code == 2
    assert said in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("patch", [(8, 30, 32), (6, 32, 32)])
def test_a_patch_that_the_network_does_not_take_is_named(patch: tuple[int, int, int]):
    described = {"name": "rwkv_unet_3d_xt", "num_classes": 4, "in_channels": 1}
    info = BundleInfo.model_validate(
        {"model": described, "classes": ["background", "a", "b", "c"], "image_size": patch[1:], "channels": 1}
        | {"image_kind": "float", "volumes": {"patch": patch}}
    )
    with pytest.raises(UserError, match=r"volumes.patch: \[.*\], and the network takes multiples of \[8, 16"):
        bundle.build(info)
