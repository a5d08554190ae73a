"""Run one function on every training worker, through Ray: a local one that is started here, or a running cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rwkvctl.base.errors import KINDS, JobFailedError, UserError
from rwkvctl.base.files import write_json
from rwkvctl.base.paths import cache_dir
from rwkvctl.base.processes import STOP_SIGNALS, available_cpus, note_sigterm
from rwkvctl.config.specs.jobs import JOBS, JobSpec
from rwkvctl.config.specs.parts import ClusterSpec
from rwkvctl.launch.address import check_node, is_job_server
from rwkvctl.launch.token import send_token_if_there_is_one
from rwkvctl.runs.stop import Stopped

WorkerFunction = Callable[[Any, Path], None]
FATAL = "fatal.json"
"""Written by a worker whose error would recur: the driver reports it and does not retry."""


@contextmanager
def ray_session(cluster: ClusterSpec, cpus: int | None = None) -> Iterator[None]:
    """Ray, connected for as long as the block runs: the cluster at `address`, or one of this process's own.

    The local one is started with an explicit address, since Ray would otherwise join whatever it finds on the machine.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune's own table; ours comes from the journal
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # idle processes that no worker of ours would use
    os.environ.setdefault("RAY_worker_niceness", "0")  # at Ray's 15 they hardly get to run beside another program
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a hospital's machine reports to nobody
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
                ray.init(address="local", include_dashboard=False, num_cpus=cpus or available_cpus(), **quiet)
            else:
                connect(cluster.address, **quiet)
        yield
    finally:
        ray.shutdown()


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


def count_workers(cluster: ClusterSpec) -> int:
    """How many workers a connected cluster is to run: as asked for, or nodes x GPUs per node."""
    if cluster.workers is not None:
        return cluster.workers
    if cluster.nodes is None:
        return 1
    return cluster.nodes * (cluster.gpus_per_node or gpus_of_smallest_node() or 1)


def gpus_of_smallest_node() -> int:
    """GPUs that every GPU node of the connected cluster has; 0 without any."""
    import ray

    counts = [int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]]
    return min((count for count in counts if count), default=0)


def run_workers(function: WorkerFunction, spec: JobSpec, run_dir: Path) -> None:
    """Run `function(spec, run_dir)` on all workers and return when the last is done.

    A worker that dies is replaced, and the function starts again on all of them: it must continue from its own
    checkpoint. Ray's controller is restarted too, both up to `cluster.max_failures` times.
    """
    fatal = run_dir / FATAL
    fatal.unlink(missing_ok=True)
    with ray_session(spec.cluster):
        workers = count_workers(spec.cluster)
        check_resources(spec.cluster, workers)
        fit_with_retries(function, spec, run_dir, workers)
    if fatal.exists():
        raise_fatal(fatal)


def fit_with_retries(function: WorkerFunction, spec: JobSpec, run_dir: Path, workers: int) -> None:
    """`TorchTrainer.fit`, again when Ray's controller died; worker failures are Ray's own to retry."""
    from ray.exceptions import RayActorError
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    for attempt in range(spec.cluster.max_failures + 1):
        try:
            in_thread(make_trainer(function, spec, run_dir, workers).fit)
            return
        except (RayActorError, ControllerError):
            if attempt == spec.cluster.max_failures:
                raise
        except WorkerGroupError as error:
            if (run_dir / FATAL).exists():
                raise_fatal(run_dir / FATAL)
            first = next(iter(error.worker_failures.values()), error)
            raise JobFailedError(
                f"the workers failed {spec.cluster.max_failures + 1} times; the last error: {first}"
            ) from error


def in_thread(call: Callable[[], Any]) -> None:
    """Call it in a thread and wait. In the main thread Ray would answer Ctrl-C itself: with an exit code of 0 or 1, and
    without an end of the run."""
    done: Future[None] = Future()

    def run() -> None:
        try:
            call()
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="ray-fit", daemon=True).start()
    done.result()


def make_trainer(function: WorkerFunction, spec: JobSpec, run_dir: Path, workers: int) -> Any:
    """Ray's trainer around our own: it places workers, joins them in a process group, and replaces the dead."""
    import ray
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig

    use_gpu = ray.cluster_resources().get("GPU", 0) > 0
    spread = spec.cluster.nodes is not None and spec.cluster.nodes > 1
    return TorchTrainer(
        run_on_worker,
        train_loop_config={
            "function": f"{function.__module__}:{function.__name__}",
            "spec": spec.model_dump(mode="json", by_alias=True),
            "run_dir": str(run_dir),
        },
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": spec.cluster.cpus_per_worker} | ({"GPU": 1} if use_gpu else {}),
            placement_strategy="SPREAD" if spread else "PACK",
        ),
        run_config=RunConfig(  # type: ignore[arg-type]
            name="ray",
            storage_path=str(run_dir),
            failure_config=FailureConfig(max_failures=spec.cluster.max_failures),
            logging_config=LoggingConfig(log_level="ERROR"),
            callbacks=[sigterm_noted()],
        ),
    )


def sigterm_noted() -> Any:
    """A callback of Ray's controller: SIGTERM does not end a worker at once, so that training can end behind a step."""
    from ray.train.v2._internal.execution.callback import WorkerGroupCallback

    class Noted(WorkerGroupCallback):
        def after_worker_group_start(self, worker_group: Any) -> None:
            worker_group.execute(note_sigterm)

    return Noted()


def run_on_worker(config: dict[str, Any]) -> None:
    """On a worker: find the function by its name and run it."""
    import importlib

    module, name = config["function"].split(":")
    spec = JOBS[config["spec"]["job"]].model_validate(config["spec"])
    fatal = Path(config["run_dir"]) / FATAL
    if fatal.exists():
        return
    try:
        getattr(importlib.import_module(module), name)(spec, Path(config["run_dir"]))
    except Stopped as stopped:  # no failure, after which Ray would start it again
        write_json(fatal, {"kind": "Stopped", "code": stopped.code})
    except (UserError, JobFailedError) as error:
        write_json(fatal, {"kind": type(error).__name__, "message": str(error)})
        raise


def raise_fatal(fatal: Path) -> None:
    """Raise, in the driver, what a worker wrote down."""
    import json

    content = json.loads(fatal.read_text())
    if content["kind"] == "Stopped":
        raise Stopped(content["code"])
    raise KINDS[content["kind"]](content["message"])


def check_resources(cluster: ClusterSpec, workers: int) -> None:
    """Refuse what the connected cluster can never place; Ray would wait for it for ever."""
    import ray

    have = ray.cluster_resources()
    needed = workers * cluster.cpus_per_worker
    if have.get("CPU", 0) < needed:
        raise UserError(
            f"cluster.workers {workers} x cluster.cpus_per_worker {cluster.cpus_per_worker} needs {needed} CPUs, "
            f"the cluster has {have.get('CPU', 0):g}: ask for fewer"
        )
    if 0 < have.get("GPU", 0) < workers:
        raise UserError(
            f"cluster.workers {workers} needs one GPU per worker, the cluster has {have['GPU']:g}: ask for fewer"
        )
