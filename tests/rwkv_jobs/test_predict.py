"""The job `predict`, from the words of a command to masks, in this process."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rwkv_jobs import predict
from rwkv_jobs.entry import guarded
from rwkv_unet import create_model
from rwkvctl.base.errors import UserError
from rwkvctl.cli import show
from rwkvctl.cli.assemble import predict_spec
from rwkvctl.models import bundle
from rwkvctl.runs import folder as run_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bundle") / "model"
    name = "rwkv_unet_xt"
    info = bundle.BundleInfo(
        model={"name": name, "num_classes": 1},
        classes=["background", "x"],
        image_size=32,
        image_kind="rgb8",
        channels=3,
    )
    bundle.save(folder, create_model(name, num_classes=1).state_dict(), info)
    return str(folder)


def run(tmp_path: Path, model: str, inputs: list[str], **options) -> dict:
    """As the job does it: the spec is stored, read again, checked and run, and the result is JSON."""
    spec = predict_spec(model, inputs, str(tmp_path / "masks"), **options)
    spec = run_folder.read_spec(run_folder.create(spec, str(tmp_path / "runs")))
    predict.check(spec, tmp_path)
    return json.loads(json.dumps(predict.run(spec, tmp_path)))


def picture(path: Path, exif: int = 1) -> None:
    tags = Image.Exif()
    tags[0x0112] = exif
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)).save(
        path, "PNG", exif=tags
    )


def test_a_folder_and_what_is_said_of_its_images(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "raw").mkdir()
    for name, turn in (("10.png", 1), ("9.png", 6), ("[red].png", 1)):
        picture(tmp_path / "raw" / name, turn)
    result = run(tmp_path, model, [str(tmp_path / "raw")])
    assert [Path(path).name for path in result["written"]] == ["9.png", "10.png", "[red].png"]
    with Image.open(result["written"][0]) as mask:
        assert mask.size == (20, 30)
    show.result("predict", tmp_path, result)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == result["written"]
    said = "turned as its EXIF tag says; its mask is 20 x 30, as viewers show the image"
    assert lines[3:] == [f"note: {tmp_path / 'raw' / '9.png'}: {said}"]
    again = predict_spec(model, [str(tmp_path / "raw")], str(tmp_path / "masks"))
    with pytest.raises(UserError, match=r"--out .*: 9.png exists; give another folder, or --overwrite"):
        predict.check(again, tmp_path)
    predict.check(again.model_copy(update={"overwrite": True}), tmp_path)


def test_a_name_that_is_not_utf8(tmp_path: Path, model: str):
    raw = os.fsencode(tmp_path) + b"/caf\xe9.png"
    picture(Path(os.fsdecode(raw)))
    [written] = run(tmp_path, model, [os.fsdecode(raw)])["written"]
    assert written == f"file://{tmp_path}/masks/caf%E9.png"
    assert Path(os.fsdecode(os.fsencode(tmp_path) + b"/masks/caf\xe9.png")).exists()


def test_a_range_for_a_model_of_8_bits(tmp_path: Path, model: str):
    Image.fromarray(np.arange(900, dtype=np.uint16).reshape(30, 30)).save(tmp_path / "x.png")
    with pytest.raises(UserError, match=r"^input .*x.png: has 16-bit values 0..899, where 8-bit ones were expected"):
        run(tmp_path, model, [str(tmp_path / "x.png")])
    assert not (tmp_path / "masks").exists()
    assert run(tmp_path, model, [str(tmp_path / "x.png")], window="0,899")["written"]


def test_a_pretrained_encoder_makes_no_masks(
    tmp_path: Path, classifier_folder: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
):
    folder = classifier_folder("rwkv_unet_enc_t")
    picture(tmp_path / "image.png")
    spec = predict_spec(str(folder), [str(tmp_path / "image.png")], str(tmp_path / "masks"))
    assert guarded("predict", str(run_folder.create(spec, str(tmp_path / "runs"))), []) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert line == (
        f"error: model {folder}: rwkv_unet_enc_t is a pretrained classifier, which makes no masks; "
        "train a segmentation model from it first: rwkvctl finetune RECIPE --encoder MODEL"
    )
    assert not (tmp_path / "masks").exists()
