"""`python -m rwkvctl.launch.await_nodes FEWEST ALL SECONDS`: wait for the nodes of the cluster at RAY_ADDRESS.

Ends as soon as all have joined, or, when the time is over, with the exit code that says whether the fewest have.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time

from rwkvctl.base.exit_codes import DONE, TRANSIENT
from rwkvctl.launch.token import send_token_if_there_is_one

SAY_EVERY = 10.0


def await_nodes(fewest: int, wanted: int, seconds: float) -> int:
    """The exit code: 0, or 75 where fewer than `fewest` nodes are alive after so many seconds."""
    send_token_if_there_is_one()
    import ray

    begin = said = time.monotonic()
    alive = 0
    while alive < wanted:
        try:
            if not ray.is_initialized():
                host, _, port = os.environ["RAY_ADDRESS"].rpartition(":")
                socket.create_connection((host, int(port)), timeout=5).close()  # Ray itself complains for 10 seconds
                ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
            alive = sum(node["Alive"] for node in ray.nodes())
        except (OSError, RuntimeError, ValueError):  # the head is still starting
            ray.shutdown()
        now = time.monotonic()
        if now - begin > seconds:
            break
        if alive < wanted and now - said > SAY_EVERY:
            said = now
            print(f"waiting for nodes: {alive} of {wanted} after {now - begin:.0f} s", flush=True)
        time.sleep(0.5)
    ray.shutdown()
    if alive >= fewest:
        return DONE
    print(f"failed: {alive} of {wanted} nodes have joined after {seconds:.0f} s", file=sys.stderr)
    return TRANSIENT


if __name__ == "__main__":
    sys.exit(await_nodes(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
