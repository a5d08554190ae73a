"""What a process has made of a file, as long as the file is the one that it was made of."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Remembered(Generic[T]):
    """The values that were asked for last, `most` of them. The key says what a value was made of: name and hash of a
    file, or name and identity. Values are shared, so they must be such as nobody can change."""

    def __init__(self, most: int):
        self._most = most
        self._values: OrderedDict[Hashable, T] = OrderedDict()
        self._lock = threading.Lock()

    def value(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of a key, made now if it is not known; an error in making it is not remembered."""
        with self._lock:
            if key not in self._values:
                self._values[key] = make()
                while len(self._values) > self._most:
                    self._values.popitem(last=False)
            self._values.move_to_end(key)
            return self._values[key]
