"""Reading, the network and writing at once: the same masks, in order, and few inputs in memory."""

from __future__ import annotations

import gc
import threading
import weakref
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from rwkvctl.base.errors import JobFailedError, UserError
from rwkvctl.models import predict, predict_stream
from rwkvctl.models.ensemble import Member, Segmenter
from rwkvctl.models.predict_stream import predict_each

from .test_predict import Bright, info


def volumes(folder: Path, count: int) -> list[tuple[Path, Path]]:
    """Volumes of other sizes each, and where their masks go."""
    folder.mkdir()
    jobs = []
    for number in range(count):
        path = folder / f"{number}.npy"
        np.save(path, np.random.default_rng(number).random((3 + number, 24, 20)).astype(np.float32))
        jobs.append((path, folder / "masks" / path.name))
    return jobs


def names(written: predict.Written, seconds: float) -> str:
    assert seconds > 0
    return written.mask.name


def test_masks_are_those_of_one_input_at_a_time_in_order_and_a_bad_one_is_told(tmp_path: Path):
    jobs = volumes(tmp_path / "in", 5)
    segmenter = Segmenter([Member(Bright().eval(), info("float"))])
    expected = {path: predict.predict_one(segmenter, path, tmp_path / path.name).ids for path, _ in jobs}
    jobs[2][0].write_bytes(b"no array")
    shares: list[tuple[str, float]] = []
    read = partial(predict.read, segmenter.info)
    found = list(predict_each(segmenter, jobs, read, names, seen=lambda path, share: shares.append((path.name, share))))
    assert [done.path for done in found] == [path for path, _ in jobs]
    assert isinstance(found[2].result, UserError)
    assert [done.result for done in found if done.path != jobs[2][0]] == ["0.npy", "1.npy", "3.npy", "4.npy"]
    for path, target in jobs[:2] + jobs[3:]:
        np.testing.assert_array_equal(np.load(target), expected[path])
    assert [share for name, share in shares if name == "0.npy"][-1] == 1


def test_the_next_is_read_while_one_is_segmented_but_not_beside_a_large_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    jobs = volumes(tmp_path / "in", 4)
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0
    begun = [threading.Event() for _ in jobs]

    def read(path: Path, target: Path) -> predict.Opened:
        begun[int(path.stem)].set()
        opened = predict.read(info("float"), path, target)
        alive.append(weakref.ref(opened.volumes[0]))
        return opened

    class Counting(Bright):
        def forward(self, x):
            nonlocal most
            gc.collect()
            most = max(most, sum(each() is not None for each in alive))
            return super().forward(x)

    class Waiting(Counting):
        def forward(self, x):
            assert begun[1].wait(60), "the second is read while the first is at work"
            return super().forward(x)

    list(predict_each(Segmenter([Member(Waiting().eval(), info("float"))]), jobs, read, names))
    alive.clear()
    most = 0
    monkeypatch.setattr(predict_stream, "READ_AHEAD", 0)
    list(predict_each(Segmenter([Member(Counting().eval(), info("float"))]), jobs, read, names))
    assert most == 1


def test_a_disk_that_is_full_ends_it(tmp_path: Path):
    jobs = volumes(tmp_path / "in", 2)
    (tmp_path / "in" / "masks").write_text("a file where the folder was")
    segmenter = Segmenter([Member(Bright().eval(), info("float"))])
    with pytest.raises(JobFailedError, match="cannot be written"):
        list(predict_each(segmenter, jobs, partial(predict.read, segmenter.info), names))
