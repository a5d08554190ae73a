"""An exported file with its processing gives predict's masks of raw values of any size, says what it takes, and is run
without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from rwkv_unet import create_model
from rwkvctl.base.errors import JobFailedError, UserError
from rwkvctl.base.files import sha256_file
from rwkvctl.data.images import intensity
from rwkvctl.models import onnx_model
from rwkvctl.models.ensemble import Member, Segmenter
from rwkvctl.models.export_whole import export
from rwkvctl.models.onnx_segmenter import OnnxSegmenter
from rwkvctl.models.predict import plan, predict_one
from rwkvctl.models.segmenting import Options

from .exported import RULE, Small, photographs, scans


@pytest.fixture(scope="module")
def liver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of photographs with three classes; its masks of one picture are compared, too."""
    folder = tmp_path_factory.mktemp("liver")
    picture = np.random.default_rng(1).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    Image.fromarray(picture).save(folder / "a.png")
    export(Small(3, 3), photographs(), path := folder / "liver.onnx", "onnx", [folder / "a.png"])
    return path


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of scans with one logit."""
    path = tmp_path_factory.mktemp("ct") / "ct.onnx"
    export(Small(1, 1), scans(classes=["background", "liver"]), path, "onnx")
    return path


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options)


def test_photographs(liver: Path):
    names = ["a.png", "liver.onnx", "liver.onnx.json", "liver.onnx.parity.json"]
    assert sorted(file.name for file in liver.parent.iterdir()) == names
    assert {node.domain for node in onnx.load(liver).graph.node} == {""}, "only standard operators"
    pixels = np.random.default_rng(0).integers(0, 256, (2, 60, 41, 3), dtype=np.uint8)
    ids, logits = session(liver).run(["ids", "logits"], {"image": pixels})
    assert (ids.shape, ids.dtype, logits.shape) == ((2, 60, 41), np.uint8, (2, 3, 48, 48))
    segmenter = Segmenter([Member(Small(3, 3).eval(), photographs())])
    assert (ids != np.stack([segmenter.segment(one).mask for one in pixels])).mean() <= 1e-3
    assert len(np.unique(ids)) == 3


def test_what_stands_beside_it(liver: Path):
    told = json.loads(liver.with_name("liver.onnx.json").read_text())
    assert told["classes"] == {"0": "background", "1": "liver", "2": "spleen"}
    assert told["inputs"]["image"]["shape"] == ["N", "H", "W", 3]
    assert (told["sha256"], told["normalisation"]["divide_by"]) == (sha256_file(liver), 255)
    inside = json.loads(session(liver).get_modelmeta().custom_metadata_map["rwkvctl.expects"])
    assert inside | {"file": told["file"], "sha256": told["sha256"]} == told
    report = json.loads(liver.with_name("liver.onnx.parity.json").read_text())
    assert report["different"] <= report["bounds"]["different"] == 1e-3
    assert report["versions"]["onnxruntime"] == onnxruntime.__version__
    assert {tuple(one["shape"]) for one in report["compared"]} >= {(1, 48, 48, 3), (3, 73, 93, 3), (2, 25, 16, 3)}
    assert (report["compared"][-1]["input"], report["compared"][-1]["shape"]) == (str(liver.parent / "a.png"), [30, 20])


def raw_and_scaled(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    raw = np.random.default_rng(0).normal(size=shape).astype(np.float32) * 300
    return raw, intensity.scaled(raw, *intensity.window(raw, *RULE["clip"]))


def test_a_scan_of_raw_values_and_of_scaled_ones(ct: Path):
    """The window of the rule is that of the voxels that are given; another may be given with them."""
    raw, scaled = raw_and_scaled((3, 50, 70))
    expected = Segmenter([Member(Small(1, 1).eval(), onnx_model.open_file(ct).info)]).segment(scaled).mask
    [own] = session(ct).run(["ids"], {"image": raw})
    [given] = session(ct).run(["ids"], {"image": scaled, "window": np.array([0, 1], np.float32)})
    assert 0.1 < expected.mean() < 0.9
    assert (own != expected).mean() <= 1e-3
    assert (given != expected).mean() <= 1e-3
    told = json.loads(ct.with_name("ct.onnx.json").read_text())
    assert (told["orientation"]["axes"], told["inputs"]["window"]["optional"]) == ("SLP", True)


@pytest.mark.slow
def test_a_program_of_torch(tmp_path: Path):
    info = scans(classes=["background", "liver"])
    export(Small(1, 1), info, path := tmp_path / "ct.pt2", "pt2")
    raw, scaled = raw_and_scaled((3, 50, 70))
    expected = Segmenter([Member(Small(1, 1).eval(), info)]).segment(scaled).mask
    module = torch.export.load(path).module()
    for values, window in ((raw, (np.nan, np.nan)), (scaled, (0.0, 1.0))):
        assert (module(torch.from_numpy(values), torch.tensor(window))[0].numpy() != expected).mean() <= 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_a_whole_network(tmp_path: Path, form: str):
    torch.manual_seed(0)
    fields = {"name": "rwkv_unet_xt", "num_classes": 3, "in_channels": 1}
    info = scans(model=fields, image_size=(64, 48))
    made = export(create_model(**fields).eval(), info, tmp_path / f"x.{form}", form)
    assert made.parity.different <= 1e-3
    assert made.parity.probability < 1e-4


class Forgetful(nn.Module):
    """Exports as something else than it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.one if torch.compiler.is_exporting() else -x


def test_a_file_of_other_masks_is_not_left(tmp_path: Path):
    with pytest.raises(
        JobFailedError, match=r"x\.pt2: of made-up images \(1, 48, 48, 3\) .* other classes than predict"
    ):
        export(Forgetful(), photographs(), tmp_path / "x.pt2", "pt2")
    with pytest.raises(UserError, match="--format tflite: choose onnx or pt2"):
        export(Forgetful(), photographs(), tmp_path / "x", "tflite")
    with pytest.raises(UserError, match=r"input .*none: no such file"):
        export(Forgetful(), photographs(), tmp_path / "x.pt2", "pt2", [tmp_path / "none"])
    assert list(tmp_path.iterdir()) == []


# By onnxruntime, as predict does it ---------------------------------------------------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "flips": {"tta": "flips", "probabilities": True},
    "rotations": {"tta": "rotations"},
    "thresholds": {"thresholds": {1: 0.6}, "largest_component": True, "fill_holes": True},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_masks_are_those_of_torch(liver: Path, name: str):
    """At a size where OpenCV's resize is not the same from the left and from the right."""
    options = Options(**OPTIONS[name])
    image = np.random.default_rng(0).integers(0, 256, (130, 40, 3), dtype=np.uint8)
    expected = Segmenter([Member(Small(3, 3).eval(), photographs())], options).segment(image)
    found = OnnxSegmenter([onnx_model.open_file(liver)], options).segment(image)
    assert len(np.unique(expected.mask)) == 3
    assert (found.mask != expected.mask).mean() <= 1e-3
    assert expected.sureness is not None
    assert found.sureness is not None
    assert found.sureness.predicted_dsc == pytest.approx(expected.sureness.predicted_dsc, abs=1e-3)
    assert found.sureness.entropy == pytest.approx(expected.sureness.entropy, rel=1e-3)
    if options.probabilities:
        assert expected.probabilities is not None
        assert found.probabilities is not None
        np.testing.assert_allclose(found.probabilities, expected.probabilities, rtol=0, atol=2e-3)


def test_an_ensemble_and_a_scan_in_parts(ct: Path, tmp_path: Path):
    """More slices than go at once; the window is that of the whole scan."""
    info = onnx_model.open_file(ct).info
    voxels = (
        np.random.default_rng(0).integers(-500, 500, (40, 50, 11)).astype(np.int16) + np.arange(11, dtype=np.int16) * 90
    )
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-1, -1, 3, 1])), raw := tmp_path / "a.nii.gz")
    for copies in (1, 2):
        [target] = plan([raw], info, tmp_path / "masks", overwrite=True).targets
        (tmp_path / "masks").mkdir(exist_ok=True)
        expected = predict_one(Segmenter([Member(Small(1, 1).eval(), info)] * copies), raw, target).ids
        found = predict_one(OnnxSegmenter([onnx_model.open_file(ct)] * copies), raw, target).ids
        assert 0.1 < expected.mean() < 0.9
        assert (found != expected).mean() <= 1e-3


def test_predict_runs_without_torch(ct: Path, tmp_path: Path):
    """In processes where it can't be imported: the command's and its job's."""
    (tmp_path / "block").mkdir()
    for name in ("torch", "torchvision", "timm", "onnx"):
        (tmp_path / "block" / f"{name}.py").write_text(f"raise ImportError('{name} is not there')\n")
    (given := tmp_path / "in").mkdir()
    raw = raw_and_scaled((2, 40, 30))[0]
    np.save(given / "a.npy", raw)
    nibabel.save(nibabel.Nifti1Image(raw, np.diag([1, 1, 3, 1])), given / "b.nii")
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (30, 20), dtype=np.uint8)).save(given / "c.png")
    environment = os.environ | {
        "RWKVCTL_HOME": str(tmp_path / "home"),
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "block"), *filter(None, sys.path)]),
    }
    words = ["predict", str(ct), str(given), "--out", str(tmp_path / "masks"), "--backend", "onnxruntime"]
    command = [sys.executable, "-c", "from rwkvctl.cli.start import main; main()", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 0.1 < np.load(tmp_path / "masks" / "a.npy").mean() < 0.9
    record = json.loads((tmp_path / "masks" / "run.json").read_text())
    assert [file["mask"] for file in record["files"]] == ["a.npy", "b.nii", "c.png"]
    assert record["device"] == f"CPUExecutionProvider of onnxruntime {onnxruntime.__version__}"
    assert record["models"][0]["weights_sha256"] == sha256_file(ct)


def test_what_cannot_be_run_is_one_line(ct: Path, tmp_path: Path):
    for names, wanted, said in (
        (["a.onnx", "run"], "auto", "^an ensemble is of exported files or of models: a.onnx is a file, run is not$"),
        (["a.onnx"], "torch", "^--backend torch: a.onnx is for onnxruntime"),
        (["run"], "onnxruntime", "make one with: rwkvctl model export run --out model.onnx$"),
    ):
        with pytest.raises(UserError, match=said):
            onnx_model.backend(names, wanted)  # type: ignore[arg-type]
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(UserError, match=r"text\.onnx: is no ONNX file that onnxruntime can open \([^\n]*\)$"):
        onnx_model.open_file(tmp_path / "text.onnx")
    with pytest.raises(UserError, match=r"none\.onnx: no such file or directory$"):
        onnx_model.open_file(tmp_path / "none.onnx")
    bare = onnx.load(ct)
    del bare.metadata_props[:]
    onnx.save(bare, tmp_path / "bare.onnx")
    with pytest.raises(UserError, match=r"bare\.onnx: lacks the pre- and post-processing; make it with: rwkvctl model"):
        onnx_model.open_file(tmp_path / "bare.onnx")
