"""Many inputs one after the other: while one goes through the network, the next is read and the one before written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from rwkvctl.base.errors import UserError
from rwkvctl.models.predict import Masked, Opened, Written, segment, write
from rwkvctl.models.segmenting import MakesMasks

T = TypeVar("T")
READ_AHEAD = 256 << 20
"""Bytes of an input from which on the next is not read before it is segmented: of two large ones one is held."""


class Done(NamedTuple, Generic[T]):
    """What became of an input: what `finish` made of it, or why it could not be segmented."""

    path: Path
    result: T | UserError


def predict_each(
    segmenter: MakesMasks,
    jobs: Iterable[tuple[Path, Path]],
    read: Callable[[Path, Path], Opened],
    finish: Callable[[Written, float], T],
    *,
    preview: bool = False,
    seen: Callable[[Path, float], None] = lambda path, share: None,
) -> Iterator[Done[T]]:
    """Predict inputs into their targets; gives each when it is written, in their order.

    Args:
        jobs: inputs and targets.
        finish: is called in the writing thread with what was written and the seconds of work that went into it.
        seen: is told, while an input is segmented, which share of it has been.
    """
    waiting = iter(jobs)
    with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "write") as writer:

        def read_next() -> tuple[Path, Future[tuple[Opened, float]]] | None:
            job = next(waiting, None)
            return None if job is None else (job[0], reader.submit(timed, read, *job))

        coming, going = read_next(), None
        while coming is not None:
            (path, reading), coming = coming, None
            try:
                opened, seconds = reading.result()
                del reading  # which holds the input, too
                if opened.bytes <= READ_AHEAD:
                    coming = read_next()
                masked, more = timed(segment, segmenter, opened, preview=preview, seen=shares(opened, seen))
                del opened
                result = writer.submit(_finished, finish, masked, seconds + more)
                del masked
            except UserError as error:
                result = Future()
                result.set_exception(error)
            coming = coming or read_next()
            if going is not None:
                yield _done(*going)
            going = path, result
        if going is not None:
            yield _done(*going)


def _finished(finish: Callable[[Written, float], T], masked: Masked, seconds: float) -> T:
    written, spent = timed(write, masked)
    return finish(written, seconds + spent)


def _done(path: Path, result: Future[T]) -> Done[T]:
    try:
        return Done(path, result.result())
    except UserError as error:
        return Done(path, error)


def shares(opened: Opened, seen: Callable[[Path, float], None]) -> Callable[[int], None]:
    """From slices that were segmented to the share of an input."""
    slices, done = max(1, opened.slices), 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        seen(opened.path, done / slices)

    return count


def timed(function: Callable[..., T], *arguments: Any, **options: Any) -> tuple[T, float]:
    """What a function gives, and the seconds that it took."""
    started = time.monotonic()
    return function(*arguments, **options), time.monotonic() - started
