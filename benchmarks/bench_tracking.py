"""What a step of training waits for the tracking server: one that answers, one that is silent, fails or is slow.

    python benchmarks/bench_tracking.py --steps 200

Trains the smallest network on synthetic images in this process, the least favourable place: what talks to the server is
a thread of the same process. Measured is the training thread in `Journal.metrics`, which is all that a step does for
its tracking, on the wall clock (with whatever else the machine does) and in the thread's own time; and the whole job,
whose start and end wait for nobody either.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import io
import os
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rwkv_jobs import driver
from rwkv_jobs.entry import guarded, resolve
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.convert.synth import phantom
from rwkvctl.runs.journal import Journal

TINY = ["cluster.launcher=process", "data.image_size=32", "data.workers=0", "train.log_steps=1", "train.batch_size=4"]
TINY += ["model.name=rwkv_unet_xt", "train.validate_every=0", "train.checkpoint_steps=100000"]


class Failing(http.server.BaseHTTPRequestHandler):
    """500 to everything, after `delay` seconds."""

    delay = 0.0

    def answer(self) -> None:
        time.sleep(self.delay)
        with contextlib.suppress(OSError):
            self.send_response(500)
            self.end_headers()

    do_GET = do_POST = do_PATCH = answer

    def log_message(self, format: str, *args: object) -> None:
        pass


class Slow(Failing):
    delay = 3.0


@contextmanager
def failing(handler: type[Failing]) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@contextmanager
def silent() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def timed() -> Iterator[list[tuple[float, float]]]:
    """Wall and thread seconds of every call of `Journal.metrics` in the block."""
    spent: list[tuple[float, float]] = []
    metrics = Journal.metrics

    def measured(self: Journal, values: dict[str, float], step: int) -> None:
        wall, own = time.perf_counter(), time.thread_time()
        metrics(self, values, step)
        spent.append((time.perf_counter() - wall, time.thread_time() - own))

    Journal.metrics = measured  # type: ignore[method-assign]
    try:
        yield spent
    finally:
        Journal.metrics = metrics  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    driver.FIRST_SENT_AFTER = 0.0  # talk to the server from the first step on
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["RWKVCTL_HOME"] = str(folder / "home")
        prepare("folder", [phantom.write_polyps(folder / "raw", n=16, size=40)], folder / "shards", seeds=[41])
        epochs = -(-arguments.steps // 3)
        words = [*TINY, f"data.path={folder / 'shards'}", f"train.epochs={epochs}"]
        servers = {"answers": contextlib.nullcontext(f"sqlite:///{folder / 'mlflow.db'}"), "silent": silent()}
        servers |= {"500": failing(Failing), "500 after 3 s": failing(Slow)}
        print(f"{epochs * 3} steps  {'wall ms: median':>16} {'p99':>7} {'max':>7}  {'own ms: max':>12}  {'job s':>6}")
        for kind, server in servers.items():
            with server as uri, timed() as spent, contextlib.redirect_stdout(io.StringIO()):
                _, run_dir = resolve("finetune", "binary", [*words, f"name=b{len(kind)}", f"tracking.uri={uri}"])
                begun = time.perf_counter()
                code = guarded("finetune", str(run_dir), [])
                took = time.perf_counter() - begun
            assert code == 0, f"{kind}: exit code {code}"
            wall = sorted(1000 * seconds for seconds, _ in spent)
            own = max(1000 * seconds for _, seconds in spent)
            p99 = wall[int(0.99 * len(wall))]
            print(f"{kind:14} {statistics.median(wall):12.3f} {p99:7.3f} {wall[-1]:7.3f}  {own:12.3f}  {took:6.1f}")


if __name__ == "__main__":
    main()
