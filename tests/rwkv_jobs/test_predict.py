"""The job `predict`, from the words of a command to masks, in this process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rwkv_jobs import predict
from rwkv_jobs.entry import guarded
from rwkv_unet import create_model
from rwkvctl.base.errors import JobFailedError, UserError
from rwkvctl.base.object_store import filesystem
from rwkvctl.cli import show
from rwkvctl.cli.assemble import predict_spec
from rwkvctl.models import bundle
from rwkvctl.runs import folder as run_folder

from .conftest import PATIENCE


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


def spec_of(words: list[str], out: Path, *, window: str | None = None, thresholds: Any = (), **options: Any):
    """What the command line makes of models and inputs."""
    return predict_spec(words, str(out), window, list(thresholds), options)


def run(tmp_path: Path, model: str, inputs: list[str], **options) -> dict:
    """As the job does it: the spec is stored, read again, checked and run, and the result is JSON."""
    spec = spec_of([model, *inputs], tmp_path / "masks", **options)
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
    files = record_of(tmp_path)["files"]
    assert sorted(each["review_rank"] for each in files) == [1, 2, 3]
    assert all(set(each["predicted_dsc"]) == {"x"} for each in files)
    show.result("predict", tmp_path, result)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == result["written"]
    said = "turned as its EXIF tag says; its mask is 20 x 30, as viewers show the image"
    assert lines[3:] == [f"note: {tmp_path / 'raw' / '9.png'}: {said}"]
    again = spec_of([model, str(tmp_path / "raw")], tmp_path / "masks")
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


def test_a_pretrained_encoder_makes_no_masks(tmp_path: Path, classifier_folder: Callable[[str], Path]):
    folder = classifier_folder("rwkv_unet_enc_t")
    picture(tmp_path / "image.png")
    spec = spec_of([str(folder), str(tmp_path / "image.png")], tmp_path / "out")
    assert guarded("predict", str(run_folder.create(spec, str(tmp_path / "runs"))), []) == 0
    assert "classes.csv" in {path.name for path in (tmp_path / "out").iterdir()}
    assert not list((tmp_path / "out").glob("*.png"))


def record_of(tmp_path: Path) -> dict[str, Any]:
    return dict(json.loads((tmp_path / "masks" / "run.json").read_text()))


def test_one_bad_file_does_not_stop_the_others_and_is_done_once_it_is_mended(tmp_path: Path, model: str):
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in ("a.png", "c.png"):
        picture(raw / name)
    (raw / "b.png").write_bytes(b"no picture")
    with pytest.raises(JobFailedError, match=r"^1 of 3 inputs failed, the others are written: input .*b\.png: "):
        run(tmp_path, model, [str(raw)])
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == ["a.png", "c.png", "run.json"]
    told = record_of(tmp_path)
    assert [each["input"] for each in told["failed"]] == [str(raw / "b.png")]
    for made in told["files"]:
        with Image.open(tmp_path / "masks" / made["mask"]) as mask:
            assert made["voxels"] == {"x": int((np.asarray(mask) == 1).sum())}
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "masks").iterdir()}
    picture(raw / "b.png")
    with pytest.raises(UserError, match=r"--out .*: has masks made with other options \(run\.json\); give the"):
        run(tmp_path, model, [str(raw)], resume=True, tta="flips")
    result = run(tmp_path, model, [str(raw)], resume=True)
    assert ([Path(path).name for path in result["written"]], result["kept"]) == (["b.png"], 2)
    assert all((tmp_path / "masks" / name).stat().st_mtime_ns == before[name] for name in ("a.png", "c.png"))
    assert (record_of(tmp_path)["failed"], len(record_of(tmp_path)["files"])) == ([], 3)
    (tmp_path / "masks" / "a.png").write_bytes(b"half")  # and one whose input has changed
    Image.new("RGB", (30, 20)).save(raw / "c.png")
    assert run(tmp_path, model, [str(raw)], resume=True)["kept"] == 1


def test_what_resume_may_replace_is_what_it_has_planned(tmp_path: Path, model: str):
    picture(tmp_path / "a.png")
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").write_bytes(b"somebody else's")
    with pytest.raises(UserError, match=r"a\.png exists; give another folder, or --overwrite"):
        run(tmp_path, model, [str(tmp_path / "a.png")], resume=True)
    (tmp_path / "masks" / "run.json").write_text('{"schema": "mine"}')
    with pytest.raises(UserError, match=r"--out .*: run\.json is not the record of a prediction; give"):
        run(tmp_path, model, [str(tmp_path / "a.png")])
    assert run(tmp_path, model, [str(tmp_path / "a.png")], overwrite=True)["written"]
    picture(tmp_path / "b.png")
    run(tmp_path, model, [str(tmp_path / "b.png")])
    assert [each["mask"] for each in record_of(tmp_path)["files"]] == ["a.png", "b.png"], "of both predictions"


def test_an_ensemble_with_all_its_options(tmp_path: Path, model: str):
    picture(tmp_path / "a.png")
    options = {"tta": "rotations", "probabilities": True, "largest_component": True, "fill_holes": True}
    options["preview"] = True
    words = [model, model, str(tmp_path / "a.png")]
    spec = spec_of(words, tmp_path / "masks", thresholds=["x=0.25"], **options)
    assert (spec.model, spec.ensemble, spec.inputs) == (model, (model,), [str(tmp_path / "a.png")])
    predict.check(spec, tmp_path)
    result = predict.run(spec, tmp_path)
    with np.load(tmp_path / "masks" / "a.probabilities.npz") as kept, Image.open(result["written"][0]) as mask:
        likely = kept["probabilities"]
        assert (likely.dtype, likely.shape) == (np.float16, (2, 20, 30))
        np.testing.assert_allclose(likely.sum(axis=0), 1, atol=2e-3)
        assert mask.size == (30, 20)
    with Image.open(tmp_path / "masks" / "previews" / "a.png.png") as preview:
        assert preview.size == (2 * 30 * 13 + 4, 20 * 13), "image and prediction, the shorter side at least 256"
    told = record_of(tmp_path)
    assert [each["reference"] for each in told["models"]] == [model, model]
    assert told["options"]["thresholds"] == {"x": 0.25}
    with pytest.raises(UserError, match=r"--threshold y: no such class; choose from x"):
        predict.check(spec_of(words, tmp_path / "other", thresholds=["y=0.25"]), tmp_path)
    with pytest.raises(UserError, match="predict: no input among "):
        spec_of([model, model], tmp_path / "masks")
    with pytest.raises(UserError, match="--threshold x: write CLASS=PROBABILITY"):
        spec_of(words, tmp_path / "masks", thresholds=["x"])


@pytest.mark.slow
def test_a_killed_prediction_goes_on_and_ends_as_one_that_was_not(tmp_path: Path, model: str):
    raw = tmp_path / "raw"
    raw.mkdir()
    rng = np.random.default_rng(1)
    for number in range(60):
        Image.fromarray(rng.integers(0, 256, (200, 200, 3)).astype(np.uint8)).save(raw / f"{number}.png")

    def command(out: str, *more: str) -> list[str]:
        return [sys.executable, "-P", "-m", "rwkvctl.cli.app", "predict", model, str(raw), "--out", out, *more]

    environment = os.environ | {"RWKVCTL_HOME": str(tmp_path / "home")}
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    subprocess.run(command(str(straight)), env=environment, check=True, capture_output=True)
    process = subprocess.Popen(
        command(str(broken)),
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + PATIENCE
    while len(list(broken.glob("*.png"))) < 5:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert 5 <= len(list(broken.glob("*.png"))) < 60
    subprocess.run(command(str(broken), "--resume"), env=environment, check=True, capture_output=True)

    def masks(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".png"}

    assert masks(broken) == masks(straight)
    assert len(masks(broken)) == 60
    assert [path.name for path in broken.iterdir() if path.suffix != ".png"] == ["run.json"]


@pytest.mark.usefixtures("door")
def test_from_a_store_to_a_store(tmp_path: Path, model: str):
    store, uri = filesystem("s3://bucket"), "s3://bucket/predicted"
    for name in ("9.png", "10.png"):
        picture(tmp_path / name)
        store.put_file(str(tmp_path / name), f"{uri}/in/{name}")
    spec = predict_spec([model, f"{uri}/in/*.png"], f"{uri}/out/", None, [], {"preview": True})
    predict.check(spec, tmp_path / "run")
    assert sorted(predict.run(spec, tmp_path / "run")["written"]) == [f"{uri}/out/10.png", f"{uri}/out/9.png"]
    names = {name.rpartition("/out/")[2] for name in store.find(f"{uri}/out")}
    assert names == {"9.png", "10.png", "previews/9.png.png", "previews/10.png.png", "run.json"}
    record = store.cat_file(f"{uri}/out/run.json").decode()
    assert f"{uri}/in/9.png" in record
    assert str(tmp_path / "run") not in record
    assert not list((tmp_path / "run").iterdir()), "what was fetched and made is gone"
    with pytest.raises(UserError, match=r"^--out s3://bucket/predicted/out: (9|10).png exists; give another folder"):
        predict.check(spec, tmp_path / "run")
