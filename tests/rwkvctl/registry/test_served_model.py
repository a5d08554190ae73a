"""`mlflow models serve` itself, asked by the line of docs/models.md: the contract of `predict`, over HTTP."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from mlflow.exceptions import MlflowException
from PIL import Image

from rwkv_unet import create_model
from rwkvctl.data.images import intensity
from rwkvctl.models import bundle, inference
from rwkvctl.models.predict import predict_files
from rwkvctl.registry import register

PAGE = Path(__file__).parents[3] / "docs" / "models.md"
PATIENCE = 300
"""Seconds, for a server that starts beside other work; it takes about 15 alone."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of CT slices with random weights, and a bias with which no class is everywhere the best."""
    torch.manual_seed(0)
    network = create_model("rwkv_unet_xt", num_classes=3, in_channels=1).eval()
    with torch.no_grad():
        network.head.bias -= network(torch.rand(3, 1, 32, 32)).mean(dim=(0, 2, 3))
    folder = tmp_path_factory.mktemp("served") / "model"
    info = bundle.BundleInfo(
        model={"name": "rwkv_unet_xt", "num_classes": 3, "in_channels": 1},
        classes=["background", "a", "b"],
        image_size=32,
        image_kind="float",
        channels=1,
        intensity=intensity.rule(-125, 275),
        orientation="itk",
    )
    bundle.save(folder, network.state_dict(), info)
    return folder


@pytest.fixture(scope="module")
def server(model: Path, migrated_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """host:port of one server for all of these tests."""
    folder = tmp_path_factory.mktemp("mlflow")
    register._save_pyfunc(folder / "version", model, bundle.read_info(model))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(folder)}
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", str(folder / "version")]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            began = time.monotonic()
            while not answers(port):
                assert process.poll() is None, (folder / "log").read_text()[-3000:]
                assert time.monotonic() - began < PATIENCE, (folder / "log").read_text()[-3000:]
                time.sleep(0.5)
            yield f"127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=10) as reply:
            return reply.status == 200
    except OSError:
        return False


def ask(server: str, content: bytes) -> tuple[int, str]:
    """Status, and the prediction or the message."""
    body = json.dumps({"inputs": [base64.b64encode(content).decode()]}).encode()
    request = urllib.request.Request(f"http://{server}/invocations", body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
            return reply.status, json.load(reply)["predictions"][0]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)["message"]


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=array.dtype == object)
    return buffer.getvalue()


def ids(text: str) -> np.ndarray:
    content = base64.b64decode(text)
    if content.startswith(b"\x93NUMPY"):
        return np.load(io.BytesIO(content))
    with Image.open(io.BytesIO(content)) as mask:
        return np.asarray(mask)


@pytest.mark.slow
def test_a_served_model_has_the_contract_of_predict(server: str, model: Path, tmp_path: Path):
    network, info = bundle.load(model)
    rng = np.random.default_rng(0)
    hu = rng.integers(-300, 500, (3, 20, 24)).astype(np.int16)
    scaled = np.clip((hu.astype(np.float32) + 125) / 400, 0, 1)
    expected = inference.segment(network, info, scaled)
    assert len(np.unique(expected)) > 1, "a mask that could be wrong"
    for volume in (hu, hu.astype(np.float64), scaled, scaled.astype(np.float64)):
        status, mask = ask(server, npy(volume))
        assert status == 200, mask
        assert (ids(mask) == expected).mean() > 0.99, "scaled here and there, the last bit may differ"

    grey = rng.integers(0, 256, (20, 24)).astype(np.uint8)
    for kind in ("PNG", "JPEG"):
        Image.fromarray(grey).save(tmp_path / f"image.{kind}")
        with Image.open(tmp_path / f"image.{kind}") as stored:
            shown = np.asarray(stored).astype(np.float32) / 255
        status, mask = ask(server, (tmp_path / f"image.{kind}").read_bytes())
        assert status == 200, mask
        np.testing.assert_array_equal(ids(mask), inference.segment(network, info, shown))

    nibabel.save(nibabel.Nifti1Image(hu.transpose(2, 1, 0), np.diag([0.7, 0.7, 4, 1])), tmp_path / "ct.nii.gz")
    [written] = predict_files(network, info, [tmp_path / "ct.nii.gz"], tmp_path / "masks")
    status, mask = ask(server, (tmp_path / "ct.nii.gz").read_bytes())
    assert status == 200, mask
    (tmp_path / "served.nii.gz").write_bytes(base64.b64decode(mask))
    np.testing.assert_array_equal(nibabel.load(tmp_path / "served.nii.gz").dataobj, nibabel.load(written).dataobj)

    wrong = {
        "neither in [0, 1] nor raw ones": npy(2 * scaled),
        "holds NaN": npy(scaled * np.nan),
        "holds Python objects": npy(np.array([{}])),
        "not an image": b"neither image nor array",
        "has 2 pages": two_pages(),
    }
    for said, content in wrong.items():
        status, line = ask(server, content)
        assert (status, "\n" in line, "pickle" in line) == (400, False, False), line
        assert line.startswith("input 0: ")
        assert said in line


def two_pages() -> bytes:
    buffer = io.BytesIO()
    page = Image.new("L", (8, 8))
    page.save(buffer, "TIFF", save_all=True, append_images=[page])
    return buffer.getvalue()


@pytest.mark.usefixtures("migrated_database")  # which imports MLflow without its warnings
def test_a_registered_classifier_answers_that_it_makes_no_masks(
    tmp_path: Path, classifier_folder: Callable[[str], Path]
):
    """In this process, by the function that the server calls for a request; the status is that of its answer."""
    from mlflow.pyfunc import load_model, scoring_server

    folder = classifier_folder("rwkv_unet_enc_t")
    register._save_pyfunc(tmp_path / "version", folder, bundle.read_info(folder))
    model = load_model(str(tmp_path / "version"))
    body = json.dumps({"inputs": [base64.b64encode(two_pages()).decode()]})
    with pytest.raises(MlflowException) as refusal:
        scoring_server.invocations(body, "application/json", model, model.metadata.get_input_schema())
    assert refusal.value.get_http_status_code() == 400
    assert refusal.value.message == (
        "this model: rwkv_unet_enc_t is a pretrained classifier, which makes no masks; "
        "train a segmentation model from it first: rwkvctl finetune RECIPE --encoder MODEL"
    )


@pytest.mark.slow
def test_the_line_of_the_page_gives_a_mask(server: str, model: Path, tmp_path: Path):
    """By bash and curl, on an image that is too large for a command's argument."""
    [line] = re.findall(r"^    (printf .*?> mask\.png)$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    pixels = np.random.default_rng(0).integers(0, 256, (400, 500, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    line = line.replace("localhost:5000", server).replace("python -c", f"{sys.executable} -c")
    subprocess.run(["bash", "-euo", "pipefail", "-c", line], cwd=tmp_path, check=True)
    [written] = predict_files(*bundle.load(model), [tmp_path / "image.png"], tmp_path / "masks")
    with Image.open(tmp_path / "mask.png") as served, Image.open(written) as predicted:
        np.testing.assert_array_equal(np.asarray(served), np.asarray(predicted))
