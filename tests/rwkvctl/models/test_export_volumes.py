"""Exported networks over three axes: the file gives the network's logits of patches, and `predict` without torch the
masks that it gives with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rwkv_unet import create_model
from rwkvctl.base.errors import JobFailedError, UserError
from rwkvctl.base.files import sha256_file
from rwkvctl.data.feed.resample import resize_image
from rwkvctl.data.images import intensity
from rwkvctl.models import bundle, export_volumes, onnx_model, onnx_volumes
from rwkvctl.models.bundle import BundleInfo
from rwkvctl.models.ensemble import Member, Segmenter
from rwkvctl.models.export_whole import export
from rwkvctl.models.onnx_segmenter import OnnxSegmenter
from rwkvctl.models.segmenting import Options

from .exported import photographs

PATCH, SPACING = (4, 16, 16), (2.0, 1.0, 1.0)


class Small(nn.Module):
    def __init__(self, channels: int = 1, classes: int = 3, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.near = nn.Conv3d(channels, 8, 3, padding=1, bias=False)
            self.last = nn.Conv3d(8, classes, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return 5 * self.last(torch.tanh(self.near(4 * x - 2)))


def info(**fields: Any) -> BundleInfo:
    own = {
        "model": {"name": "rwkv_unet_3d_t"}, "classes": ["background", "liver", "spleen"], "image_size": PATCH[1:],
        "image_kind": "float", "channels": 1, "volumes": {"patch": PATCH, "spacing": SPACING}, "orientation": "itk",
        "intensity": intensity.rule(-100, 100), "weights_sha256": "f" * 64,
    }  # fmt: skip
    return BundleInfo.model_validate(own | fields)


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = np.random.default_rng(3).integers(-150, 150, (26, 30, 9)).astype(np.int16)
    path = tmp_path_factory.mktemp("scan") / "ct.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-0.9, 0.8, 3.2, 1])), path)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, scan: Path) -> Path:
    export(Small(), info(), path := tmp_path_factory.mktemp("file") / "organs.onnx", "onnx", [scan])
    return path


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, 30)] * 3), wanted=st.tuples(*[st.integers(1, 40)] * 3), channels=st.integers(1, 2)
)
def test_resampling_without_torch_is_that_of_torch(sizes: Any, wanted: Any, channels: int):
    volume = np.random.default_rng(0).random((channels, *sizes), np.float32)
    expected = resize_image(torch.from_numpy(volume), wanted).numpy()
    np.testing.assert_allclose(onnx_volumes.resized(volume, wanted), expected, atol=2e-5)


def test_the_file_takes_patches_and_says_what_to_do_around_it(exported: Path, scan: Path):
    session = onnxruntime.InferenceSession(exported)
    x = torch.randn(3, 1, *PATCH)
    [logits] = session.run(["logits"], {"patches": x.numpy()})
    np.testing.assert_allclose(logits, Small()(x).detach().numpy(), atol=1e-4)
    assert {node.domain for node in onnx.load(exported).graph.node} == {""}, "only standard operators"
    told = json.loads(exported.with_name("organs.onnx.json").read_text())
    assert (told["schema"], told["patch"], told["spacing"]["mm"]) == ("rwkv-exported/1", [4, 16, 16], [2, 1, 1])
    assert (told["inputs"]["patches"]["shape"], told["windows"]["overlap"]) == (["N", 1, 4, 16, 16], 0.5)
    assert (told["intensity"]["clip"], told["orientation"]["axes"]) == ([-100, 100], "SPL")
    assert told["sha256"] == sha256_file(exported)
    report = json.loads(exported.with_name("organs.onnx.parity.json").read_text())
    assert report["different"] <= 1e-3
    kinds = [one["input"] for one in report["compared"]]
    assert kinds == ["patches of noise", *["made-up volumes"] * 3, str(scan)]


@pytest.mark.parametrize(
    "options",
    [
        Options(),
        Options(probabilities=True),
        Options(tta="flips", probabilities=True),
        Options(tta="rotations", probabilities=True),
        Options(thresholds={1: 0.4}, probabilities=True, largest_component=True),
    ],
)
@pytest.mark.parametrize("shape", [(11, 30, 25), (2, 9, 40), (1, 20, 20)])
def test_masks_without_torch_are_those_of_torch(exported: Path, options: Options, shape: tuple[int, int, int]):
    image, seen = np.random.default_rng(1).random(shape, np.float32), [list[int](), list[int]()]
    ours = Segmenter([Member(Small().eval(), info())], options)
    theirs = OnnxSegmenter([onnx_model.open_file(exported)], options)
    one = ours.segment(image, spacing=(3.0, 0.8, 0.7), seen=seen[0].append)
    other = theirs.segment(image, spacing=(3.0, 0.8, 0.7), seen=seen[1].append)
    assert (one.mask != other.mask).mean() <= 2e-3
    assert len(np.unique(one.mask)) == 3
    assert [sum(each) for each in seen] == [shape[0]] * 2
    assert other.sureness is not None
    assert other.sureness.entropy == pytest.approx(one.sureness.entropy, abs=1e-3)  # type: ignore[union-attr]
    if options.probabilities:
        np.testing.assert_allclose(other.probabilities, one.probabilities, atol=2e-3)  # type: ignore[arg-type]


def test_one_logit_several_channels_no_spacing_and_a_temperature(tmp_path: Path):
    fields: dict[str, Any] = {
        "classes": ["background", "organ"], "channels": 2, "volumes": {"patch": PATCH},
        "calibration": {"temperature": 2.0},
        "intensity": {"channels": [{"over": "box", "scale": "(x - mean) / deviation"}] * 2},
    }  # fmt: skip
    second = info(**fields | {"volumes": {"patch": (8, 8, 16), "overlap": 0.25}})
    export(Small(2, 1), info(**fields), tmp_path / "a.onnx", "onnx")
    export(Small(2, 1, 1), second, tmp_path / "b.onnx", "onnx")
    image = np.random.default_rng(1).random((9, 20, 30, 2), np.float32)
    members = [Member(Small(2, 1).eval(), info(**fields)), Member(Small(2, 1, 1).eval(), second)]
    files = [onnx_model.open_file(tmp_path / name) for name in ("a.onnx", "b.onnx")]
    for count, options in ((1, Options()), (2, Options(probabilities=True))):
        one, other = (
            made.segment(image)
            for made in (Segmenter(members[:count], options), OnnxSegmenter(files[:count], options))  # type: ignore[arg-type]
        )
        assert (one.mask != other.mask).mean() <= 1e-3
        assert 0.05 < one.mask.mean() < 0.95
    np.testing.assert_allclose(other.probabilities, one.probabilities, atol=2e-3)


def test_predict_runs_the_file_without_torch(exported: Path, scan: Path, tmp_path: Path):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from rwkvctl.models import onnx_model\n"
        "from rwkvctl.models.onnx_segmenter import OnnxSegmenter\n"
        "from rwkvctl.models.predict import predict_one\n"
        "made = predict_one(OnnxSegmenter([onnx_model.open_file(Path(sys.argv[1]))]), *map(Path, sys.argv[2:]))\n"
        "print(made.mask, 'torch' in sys.modules)\n"
    )
    target = tmp_path / "mask.nii.gz"
    done = subprocess.run(
        [sys.executable, "-c", code, str(exported), str(scan), str(target)],
        capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.stdout.split() == [str(target), "False"]
    from rwkvctl.models.predict import predict_files

    [written] = predict_files(Small().eval(), info(), [scan], tmp_path / "masks")
    found, expected = nibabel.load(target), nibabel.load(written)
    assert (np.asarray(found.dataobj) != np.asarray(expected.dataobj)).mean() <= 1e-3
    np.testing.assert_allclose(found.affine, expected.affine)


def test_a_file_that_gives_something_else_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    graph = export_volumes.graph
    monkeypatch.setattr(export_volumes, "graph", lambda model, *rest: graph(Small(seed=1), *rest))
    with pytest.raises(JobFailedError, match="logits differ from the model's by"):
        export(Small(), info(), tmp_path / "a.onnx", "onnx")
    assert not list(tmp_path.iterdir())


def test_what_an_exported_file_does_not_do(exported: Path, tmp_path: Path, rwkvctl: Callable[[str], Any]):
    opened = onnx_model.open_file(exported)
    for image, line in (
        (np.zeros((20, 30), np.float32), "takes whole volumes"),
        (np.zeros((5, 20, 30), np.float32), "has no spacing, and the model takes volumes at 2 x 1 x 1 mm"),
    ):
        with pytest.raises(UserError, match=line):
            OnnxSegmenter([opened]).segment(image)
    flat = onnx_model.OnnxModel(Path("b.onnx"), None, photographs(image_kind="float", channels=1))
    flat.info = info(volumes=None)
    with pytest.raises(UserError, match="exported files of slices and of volumes are no ensemble"):
        OnnxSegmenter([opened, flat])
    described = {"name": "rwkv_unet_3d_t", "num_classes": 3, "in_channels": 1, "flat_stages": 2}
    network = create_model(**described)
    bundle.save(tmp_path / "model", network.state_dict(), info(model=described))
    done = rwkvctl(f"model export {tmp_path}/model --logits --out {tmp_path}/a.onnx")
    assert done.code == 2
    assert "--logits: of a network over three axes the file takes patches and gives logits anyway" in done.err


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_the_networks_of_this_project(tmp_path: Path, form: str):
    torch.manual_seed(0)
    model = create_model("rwkv_unet_3d_t", num_classes=3, in_channels=1).eval()
    own = info(volumes={"patch": (8, 32, 32), "spacing": SPACING}, image_size=(32, 32))
    assert export(model, own, tmp_path / f"a.{form}", form).parity.different <= 1e-3
