"""A server under load, on loopback: callers at once whose slices share batches; batching off; one caller.

    python benchmarks/bench_serve.py --clients 8 --requests 160

Starts `rwkvctl serve` twice with the same model of random weights (`--set batch=8`, `--set batch=1`), on free ports,
and asks them in turn, round by round, so that whatever else the machine does meets all sides alike. Every answer is
compared with the first one: a mask that differs is an error. Ends after --requests of each side or --seconds.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

ROUNDS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="rwkv_unet_t")
    parser.add_argument("--size", type=int, default=224, help="what the network sees")
    parser.add_argument("--pixels", type=int, default=256, help="side of the images that are sent")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=160, help="of each side, at most")
    parser.add_argument("--seconds", type=float, default=240, help="for all of it, at most")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--any-bits", action="store_true", help="also batches that change last bits; compares no masks")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        model = write_model(Path(folder) / "model", arguments.model, arguments.size)
        ports = {batch: stack.enter_context(Server(model, batch, arguments, folder)).port for batch in (8, 1)}
        sides = {
            f"{arguments.clients} callers, batches of up to 8": (ports[8], arguments.clients),
            f"{arguments.clients} callers, batching off": (ports[1], arguments.clients),
            "1 caller": (ports[1], 1),
        }
        print("batches of", get(ports[8], "/model")["batches_of"], "slices are used")
        upload = picture(arguments.pixels)
        expected = {port: post(port, upload) for port in ports.values()}  # which also warms them up
        assert arguments.any_bits or len(set(expected.values())) == 1, "the masks of both servers are the same"
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        end = time.monotonic() + arguments.seconds
        for _ in range(ROUNDS):
            for name, (port, clients) in sides.items():
                if time.monotonic() < end:
                    found[name] += load(
                        port,
                        clients,
                        arguments.requests // ROUNDS,
                        upload,
                        None if arguments.any_bits else expected[port],
                    )
        report(found, arguments)


def write_model(folder: Path, name: str, size: int) -> Path:
    import torch

    from rwkv_unet import create_model
    from rwkvctl.models import bundle

    torch.manual_seed(0)
    info = bundle.BundleInfo(
        model={"name": name, "num_classes": 2},
        classes=["background", "polyp"],
        image_size=size,
        image_kind="rgb8",
        channels=3,
    )
    bundle.save(folder, create_model(name, num_classes=2).state_dict(), info)
    return folder


class Server:
    """`rwkvctl serve` on a free port, for as long as a block runs."""

    def __init__(self, model: Path, batch: int, arguments: argparse.Namespace, home: str):
        words = ["serve", str(model), "--port", "0", "--replicas", str(arguments.replicas), "--set", f"batch={batch}"]
        words += ["--set", f"same_bits={not arguments.any_bits}".lower()]
        environment = os.environ | {"RWKVCTL_HOME": home}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "rwkvctl.cli.app", *words], stdout=subprocess.PIPE, text=True, env=environment
        )

    def __enter__(self) -> Server:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert " at http://" in line, line
        self.port = int(line.partition(" at http://")[2].split()[0].rpartition(":")[2])
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()


def picture(side: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def post(port: int, content: bytes, connection: http.client.HTTPConnection | None = None) -> bytes:
    connection = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n' + content + b"\r\n--b--\r\n"
    connection.request("POST", "/predict", body, {"Content-Type": "multipart/form-data; boundary=b"})
    answer = connection.getresponse()
    mask = answer.read()
    assert answer.status == 200, mask
    return mask


def get(port: int, path: str) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    connection.request("GET", path)
    return dict(json.loads(connection.getresponse().read()))


def load(port: int, clients: int, requests: int, upload: bytes, expected: bytes | None) -> list[tuple[float, float]]:
    """(seconds, end) of each request; `clients` callers, each with one connection, until there are so many."""
    left, lock = iter(range(requests)), threading.Lock()
    taken: list[tuple[float, float]] = []

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        while True:
            with lock:
                if next(left, None) is None:
                    break
            began = time.monotonic()
            assert post(port, upload, connection) == expected or expected is None
            taken.append((time.monotonic() - began, time.monotonic()))
        connection.close()

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [(seconds, (time.monotonic() - began) / max(1, len(taken))) for seconds, _ in taken]


def report(found: dict[str, list[tuple[float, float]]], arguments: argparse.Namespace) -> None:
    loaded = os.getloadavg()[0]
    print(
        f"{arguments.model} at {arguments.size}, {arguments.pixels} x {arguments.pixels} PNG, {arguments.replicas} "
        f"replica(s), {os.cpu_count()} CPUs, load {loaded:.1f}"
    )
    rate = {name: 1 / float(np.mean([each for _, each in times])) for name, times in found.items() if times}
    base = rate["1 caller"]
    print(f"{'':36}{'n':>5}{'requests/s':>12}{'vs 1':>7}{'p50 ms':>9}{'p99 ms':>9}")
    for name, times in found.items():
        seconds = np.array([each for each, _ in times]) * 1000
        p50, p99 = np.percentile(seconds, [50, 99])
        print(f"{name:36}{len(times):>5}{rate[name]:>12.2f}{rate[name] / base:>6.2f}x{p50:>9.0f}{p99:>9.0f}")


if __name__ == "__main__":
    main()
