"""Ray for as long as a job needs it: the cluster at an address, or one of this process's own."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rwkvctl.base.errors import TransientError, UserError
from rwkvctl.base.paths import cache_dir
from rwkvctl.base.processes import STOP_SIGNALS, available_cpus
from rwkvctl.config.specs.parts import ClusterSpec
from rwkvctl.launch import head
from rwkvctl.launch.address import check_node, is_job_server
from rwkvctl.launch.token import send_token_if_there_is_one

STARTS = 3
TOO_SLOW = "timed out during startup"
"""What Ray says when one of its own processes was too slow for another."""

LOUD = "has been marked dead because|Raylet is terminated"
"""What Ray prints on every driver about any node of the cluster, with stacks; a job says itself what its own do."""


@contextmanager
def ray_session(cluster: ClusterSpec, cpus: int | None = None) -> Iterator[None]:
    """Ray, connected for as long as the block runs: the cluster at `address`, or one of this process's own.

    The local one is started with an explicit address, since Ray would otherwise join whatever it finds on the machine.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune's own table; ours comes from the journal
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # idle processes that no worker of ours would use
    os.environ.setdefault("RAY_worker_niceness", "0")  # at Ray's 15 they hardly get to run beside another program
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a hospital's machine reports to nobody
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", LOUD)
    if cluster.address is not None:
        send_token_if_there_is_one()
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    import ray

    # Ray announces at every start that token authentication is on, which is what we want.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "WARNING"}
    try:
        with own_signal_handlers(), no_code_here():
            if cluster.address is None:
                start_here(include_dashboard=False, num_cpus=cpus or available_cpus(), **quiet)
            else:
                connect(cluster.address, **quiet)
        with head.watched(None if cluster.address is None else ray.get_runtime_context().gcs_address):
            yield
    finally:
        ray.shutdown()


def start_here(**options: Any) -> None:
    """Ray for this process alone. Its own processes give one another 15 seconds, which on a busy machine is too little:
    it is started again.

    Raises:
        TransientError: it has not come up in `STARTS` starts.
    """
    import ray

    for _ in range(STARTS):
        try:
            ray.init(address="local", **options)
            return
        except Exception as error:  # Ray's own is no other
            if TOO_SLOW not in str(error):
                raise
            ray.shutdown()
    raise TransientError(f"Ray has not come up on this machine in {STARTS} starts: it is too busy; try again later")


def connect(address: str, **options: Any) -> None:
    """Join a running cluster as its driver; a job server has already brought this process into its own."""
    import ray

    if address != "auto" and not is_job_server(address):
        check_node(address)
    try:
        ray.init(address="auto" if is_job_server(address) else address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"cluster.address {address}: no Ray cluster answers ({reason})") from None


@contextmanager
def own_signal_handlers() -> Iterator[None]:
    """`ray.init` takes SIGTERM for itself, and would end the process without telling the run."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        yield
    except SystemExit as error:
        if error.code == signal.SIGTERM:  # Ray's handler was in place for a moment
            raise KeyboardInterrupt from None
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if signal.getsignal(number) != handler and signal.getsignal(number) != signal.SIG_IGN:
                    signal.signal(number, handler)


@contextmanager
def no_code_here() -> Iterator[None]:
    """Ray puts the folder that it is started in before the standard library on its workers: an empty one."""
    empty = cache_dir() / "empty"
    empty.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(empty):
        yield
