"""The processes that make samples, and how they start, fail and end."""

from __future__ import annotations

import inspect
import multiprocessing
import sys
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader

from rwkvctl.base.errors import UserError
from rwkvctl.base.processes import end_with_parent
from rwkvctl.data.feed.samples import Batch, Samples, collate


def data_loader(dataset: Samples, batches: Any, workers: int) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers else None,
        worker_init_fn=begin_process,
        multiprocessing_context=process_context() if workers else None,
        generator=torch.Generator(),  # without it every pass would draw from the global generator
    )


def process_context() -> Any:
    """Workers come from a fork server: a process without threads, forked anew for each worker.

    A plain fork copies a process that has threads (gloo, Ray, MLflow, OpenMP) with their locks as they are, and may
    hang; spawn imports torch again in each worker. Here it is imported once, by the server.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rwkvctl.data.feed.samples", *of_main_module()])
    return context


def of_main_module() -> list[str]:
    """Our modules that the main module takes from. Every process imports the main module again, which takes a second of
    a job's unless the server has them."""
    values = vars(sys.modules["__main__"]).values()
    names = {getattr(value, "__name__" if inspect.ismodule(value) else "__module__", None) for value in values}
    return sorted(name for name in names if isinstance(name, str) and name.split(".")[0] in ("rwkvctl", "rwkv_jobs"))


def begin_process(worker: int = 0) -> None:
    """One thread a worker, and no life after the training process."""
    end_with_parent()
    sys.excepthook = print_unless_hung_up
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def print_unless_hung_up(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A training that is interrupted while it takes a batch hangs up on the thread here that hands it over. Its
    traceback would come after the training's last line."""
    hung_up = isinstance(error, EOFError | ConnectionError) and threading.current_thread() != threading.main_thread()
    if not hung_up:
        sys.__excepthook__(kind, error, trace)


def plain_errors(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches; a UserError from a worker gets back its one line, which torch wraps into a traceback."""
    try:
        yield from batches
    except UserError as error:
        line = str(error).strip().splitlines()[-1]
        raise UserError(line.rpartition("UserError: ")[2]) from None


def shut_down(loader: DataLoader[Any]) -> None:
    iterator = getattr(loader, "_iterator", None)
    if iterator is not None:
        iterator._shutdown_workers()
        loader._iterator = None
