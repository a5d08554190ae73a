"""Arrays in a file without a name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rwkvctl.base.on_disk import array_on_disk, release


def resident_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssFile"))


def test_what_is_released_is_kept_and_takes_no_memory(tmp_path: Path):
    array = array_on_disk(tmp_path, (16, 1024, 1024), np.uint8)
    assert list(tmp_path.iterdir()) == []
    array[:] = 7
    full = resident_mb()
    release(np.asarray(array)[::2].transpose(2, 0, 1))
    assert resident_mb() < full - 12
    assert (array == 7).all()
    release(np.zeros(3))


def test_a_disk_without_room_says_so_at_once(tmp_path: Path):
    with pytest.raises(OSError, match=r"No space left|File too large"):
        array_on_disk(tmp_path, (1 << 20, 1 << 30), np.float16)
    assert list(tmp_path.iterdir()) == []
