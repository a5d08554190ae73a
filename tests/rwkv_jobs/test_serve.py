"""`rwkvctl serve` as it is typed: Ray Serve with two replicas, which are killed in turn."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from rwkv_unet import create_model, fuse_for_inference
from rwkvctl.models import bundle
from rwkvctl.models.predict import predict_files

from ..process_groups import end_group
from .conftest import PATIENCE

TOKEN = "a-token-of-this-test-alone"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = create_model("rwkv_unet_xt", num_classes=3).eval()
    with torch.no_grad():
        network.head.bias -= network(torch.rand(3, 3, 32, 32)).mean(dim=(0, 2, 3))
    folder = tmp_path_factory.mktemp("served") / "model"
    info = bundle.BundleInfo(
        model={"name": "rwkv_unet_xt", "num_classes": 3},
        classes=["background", "liver", "tumour"],
        image_size=32,
        image_kind="rgb8",
        channels=3,
    )
    bundle.save(folder, network.state_dict(), info)
    return folder


def command(*words: str) -> list[str]:
    return [sys.executable, "-P", "-m", "rwkvctl.cli.app", "serve", *words]


def post(address: str, content: bytes, token: str | None = TOKEN) -> tuple[int, bytes]:
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n' + content + b"\r\n--b--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(f"{address}/predict", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


@pytest.fixture
def server(model: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command, and the address that it prints."""
    (tmp_path / "token").write_text(TOKEN)
    words = command(str(model), "--port", "0", "--replicas", "2", "--token-file", str(tmp_path / "token"))
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith(f"serving {model}, version "), line
    try:
        yield process, line.partition(" at ")[2].split()[0]
    finally:
        end_group(process)
        process.stdout.close()


def replicas(process: subprocess.Popen[str]) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if child.cmdline()[:1] and child.cmdline()[0].startswith("ray::ServeReplica"):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.mark.slow
@pytest.mark.ray
def test_a_replica_that_is_killed_loses_no_request(
    server: tuple[subprocess.Popen[str], str], model: Path, tmp_path: Path
):
    process, address = server
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    network, info = bundle.load(model)
    [mask] = predict_files(fuse_for_inference(network), info, [tmp_path / "image.png"], tmp_path / "masks")
    upload, answers, end = (tmp_path / "image.png").read_bytes(), [], threading.Event()
    assert post(address, upload, token=None)[0] == 401

    def ask() -> None:
        while not end.is_set():
            answers.append(post(address, upload))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        deadline = time.monotonic() + PATIENCE
        for number in range(2):  # the second kill is of the other, or of the one that came in its place
            more = len(answers) + 10
            while len(answers) < more or len(replicas(process)) < 2 - number:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            os.kill(replicas(process)[0].pid, signal.SIGKILL)
        more = len(answers) + 30
        while len(answers) < more:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        end.set()
        for thread in threads:
            thread.join()
    assert {status for status, _ in answers} == {200}
    assert {body for _, body in answers} == {mask.read_bytes()}
    request = urllib.request.Request(f"{address}/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
        text = reply.read().decode()
    assert f'rwkvctl_requests_total{{status="200"}} {len(answers)}.0' in text

    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) > 3
    for each in family:  # the token is in the memory of the server's own process
        if each.is_running() and "ray::" in each.name():
            assert TOKEN not in str(each.environ())
    process.kill()
    _, alive = psutil.wait_procs(family, timeout=PATIENCE)
    assert alive == []
