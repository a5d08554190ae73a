"""An exported file gives the model's logits, at sizes and batches that the export has not seen."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from biwkv import bi_wkv, bi_wkv_nd, selective_scan
from rwkv_unet import create_model
from rwkvctl.base.errors import JobFailedError, UserError
from rwkvctl.models import bundle
from rwkvctl.models.export import export
from rwkvctl.models.onnx_ops import TRANSLATIONS


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """One whose logits depend on the image and on its attention."""
    torch.manual_seed(0)
    model = create_model("rwkv_unet_xt", num_classes=3, depths=(1, 1, 2, 1)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith((".decay", ".first")):
            nn.init.normal_(parameter, std=3)
        elif parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    assert any(name.endswith(".decay") for name, _ in model.named_parameters())
    return model


def info() -> bundle.BundleInfo:
    return bundle.BundleInfo(
        model={"name": "rwkv_unet_xt", "num_classes": 3, "depths": (1, 1, 2, 1)},
        classes=["background", "liver", "spleen"],
        image_size=48,
        image_kind="rgb8",
        channels=3,
    )


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_the_file_gives_the_models_logits(model: nn.Module, tmp_path: Path, form: str):
    made = export(model, info(), tmp_path / f"model.{form}", form)
    assert set(made.errors) == {"48x48", "64x64", "64x96"}
    assert max(made.errors.values()) < 1e-5
    assert [path.name for path in tmp_path.iterdir()] == [f"model.{form}"]
    image = torch.randn(2, 3, 80, 48)
    with torch.inference_mode():
        expected = model(image)
    assert (expected[0] - expected[1]).abs().max() > 0.01 * expected.abs().max()
    if form == "onnx":
        session = onnxruntime.InferenceSession(made.path)
        [logits] = session.run(["logits"], {"image": image.numpy()})
        facts = session.get_modelmeta().custom_metadata_map
        nodes = {node.domain for node in onnx.load(made.path).graph.node}
        assert nodes == {""}, "only standard operators"
        logits = torch.from_numpy(logits)
    else:
        facts = {"rwkvctl.classes": ""}
        logits = torch.export.load(made.path, extra_files=facts).module()(image)
    assert json.loads(facts["rwkvctl.classes"]) == ["background", "liver", "spleen"]
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


class Attention(nn.Module):
    def __init__(self, axes: int, decay: float):
        super().__init__()
        generator = torch.Generator().manual_seed(axes)
        self.w = decay * torch.randn(axes or 1, 6, generator=generator)
        self.u = 2 * torch.randn(6, generator=generator)
        self.axes = axes

    def forward(self, k: Tensor, v: Tensor) -> Tensor:
        if self.axes == 0:
            return bi_wkv(self.w[0] / k.shape[1], self.u, k, v)
        return bi_wkv_nd(self.w / k.shape[1], self.u, k, v)


@pytest.mark.parametrize(
    ("axes", "decay", "shape"),
    [(0, 1, (9,)), (0, 15, (9,)), (0, -15, (9,)), (1, 3, (9,)), (2, 3, (4, 6)), (3, 3, (3, 4, 2))],
)
def test_attention_in_standard_operators(tmp_path: Path, axes: int, decay: float, shape: tuple[int, ...]):
    module = Attention(axes, decay).eval()
    any_size = dict.fromkeys(range(len(shape) + 1), torch.export.Dim.DYNAMIC)
    program = torch.onnx.export(
        module, tuple(torch.randn(2, 2, *shape, 6)), dynamo=True, custom_translation_table=TRANSLATIONS,
        opset_version=18, dynamic_shapes=(any_size, any_size), verbose=False,
    )  # fmt: skip
    assert program is not None
    program.save(tmp_path / "x.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx")
    k, v = torch.randn(2, 3, *(7 * size for size in shape), 6)
    k *= 3
    names = [given.name for given in session.get_inputs()]
    [y] = session.run(None, dict(zip(names, (k.numpy(), v.numpy()), strict=True)))
    torch.testing.assert_close(torch.from_numpy(y), module(k, v), rtol=0, atol=2e-5)


class StateSpace(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.d = -4 * torch.rand(2, 3, 4), torch.randn(2, 3)

    def forward(self, x: Tensor, b: Tensor) -> Tensor:
        return selective_scan(x, x.abs(), self.a, b, b.flip(3), self.d)


def test_selective_scans_in_standard_operators(tmp_path: Path):
    module, any_size = StateSpace().eval(), {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    program = torch.onnx.export(
        module, (torch.randn(2, 5, 2, 3), torch.randn(2, 5, 2, 4)), dynamo=True, opset_version=18, verbose=False,
        custom_translation_table=TRANSLATIONS, dynamic_shapes=(any_size, any_size),
    )  # fmt: skip
    assert program is not None
    program.save(tmp_path / "x.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx")
    x, b = torch.randn(3, 11, 2, 3), torch.randn(3, 11, 2, 4)
    [y] = session.run(None, dict(zip([i.name for i in session.get_inputs()], (x.numpy(), b.numpy()), strict=True)))
    torch.testing.assert_close(torch.from_numpy(y), module(x, b), rtol=0, atol=2e-5)
    assert {node.domain for node in onnx.load(tmp_path / "x.onnx").graph.node} == {""}


class Untraceable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x


def test_what_cannot_be_exported_is_one_line_and_no_file(model: nn.Module, tmp_path: Path):
    with pytest.raises(UserError, match="--format tflite: choose onnx or pt2"):
        export(model, info(), tmp_path / "x", "tflite")
    with pytest.raises(UserError, match=r"^Untraceable cannot be exported to pt2: [^\n]*$"):
        export(Untraceable(), info(), tmp_path / "x.pt2", "pt2")
    assert list(tmp_path.iterdir()) == []


class Windowed(nn.Module):
    """Takes images of one size only."""

    divisor = 224

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[2:] == (224, 224)
        return x.mean((2, 3), keepdim=True) + x


RULE = {"clip": [-125, "p99"], "scale": "(x - low) / (high - low)"}


@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_the_file_says_how_a_scan_becomes_its_input(tmp_path: Path, form: str):
    scans = info().model_copy(
        update={"image_size": 224, "image_kind": "float", "channels": 1, "intensity": RULE, "orientation": "RAS"}
    )
    export(Windowed(), scans, path := tmp_path / f"x.{form}", form, fixed_size=True)
    assert facts_of(path) == {
        "intensity": RULE, "orientation": "RAS", "image_kind": "float", "image_size": 224, "mean": None, "std": None,
        "classes": scans.classes, "model": scans.model | {"depths": [1, 1, 2, 1]}, "dataset": "", "weights_sha256": "",
    }  # fmt: skip
    export(Windowed(), scans.model_copy(update={"intensity": None, "orientation": None}), path, form, fixed_size=True)
    assert (facts_of(path)["intensity"], facts_of(path)["orientation"]) == (None, None)


def facts_of(path: Path) -> dict[str, Any]:
    """The metadata, as another program reads it."""
    if path.suffix == ".onnx":
        found = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    else:
        with zipfile.ZipFile(path) as archive:
            names = [name.split("/extra/", 1)[1] for name in archive.namelist() if "/extra/" in name]
        found = dict.fromkeys(names, "")
        torch.export.load(path, extra_files=found)
    return {key.removeprefix("rwkvctl."): json.loads(value) for key, value in found.items()}


def test_a_model_of_one_size_is_exported_for_that_size(tmp_path: Path):
    windowed = info().model_copy(update={"image_size": 224})
    with pytest.raises(
        UserError, match=r"^224 x 224: Windowed is exported for images of any size only from .*--fixed-size$"
    ):
        export(Windowed(), windowed, tmp_path / "x.pt2", "pt2")
    made = export(Windowed(), windowed, tmp_path / "x.pt2", "pt2", fixed_size=True)
    assert made.errors == {"224x224": 0}
    logits = torch.export.load(made.path).module()(torch.ones(5, 3, 224, 224))
    assert torch.equal(logits, torch.full((5, 3, 224, 224), 2.0))


class Forgetful(nn.Module):
    """Exports as something else than it computes: the graph takes the branch of tracing."""

    def forward(self, x: Tensor) -> Tensor:
        return x if torch.compiler.is_exporting() else 2 * x


def test_a_file_that_computes_something_else_is_not_left(tmp_path: Path):
    with pytest.raises(JobFailedError, match=r"its logits differ from the model's by 5\.0e-01"):
        export(Forgetful(), info(), tmp_path / "x.pt2", "pt2")
    assert list(tmp_path.iterdir()) == []


def test_without_onnx_installed(model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        UserError, match=r"ONNX export needs onnxruntime; install it with: pip install 'rwkvctl\[onnx\]'"
    ):
        export(model, info(), tmp_path / "x.onnx", "onnx")
    assert list(tmp_path.iterdir()) == []
