"""What is made while the last of it is being used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def ahead(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[tuple[Item, Made]]:
    """Each item with what `make` gives of it, in their order; a thread makes the next one while the caller uses one.
    Two are held at once."""
    waiting = list(items)
    if len(waiting) < 2:
        yield from ((item, make(item)) for item in waiting)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        coming = thread.submit(make, waiting[0])
        for number, item in enumerate(waiting):
            made = coming.result()
            if number + 1 < len(waiting):
                coming = thread.submit(make, waiting[number + 1])
            yield item, made
