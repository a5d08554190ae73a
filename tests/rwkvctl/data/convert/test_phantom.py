from __future__ import annotations

import hashlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from rwkvctl.data.convert.synth import phantom
from rwkvctl.data.store.manifest import Manifest


def digest(root: Path) -> str:
    everything = hashlib.sha256()
    for path in sorted(root.rglob("*.*")):
        everything.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return everything.hexdigest()


@pytest.mark.parametrize("write", ["write_polyps", "write_textures"])
def test_same_seed_same_files(write, tmp_path):
    options = {"n": 3} if write == "write_polyps" else {"classes": 2, "per_class": 2}
    made = [getattr(phantom, write)(tmp_path / str(i), size=32, seed=i // 2, **options) for i in range(3)]
    assert digest(made[0]) == digest(made[1]) != digest(made[2])


def test_volumes_are_acdcs_form(hearts: Path, cardiac: Manifest):
    volumes = sorted((hearts / "ACDC_training_volumes").iterdir())
    assert len(volumes) == 8
    for path in volumes:
        with h5py.File(path) as file:
            image, label, scribble = file["image"][()], file["label"][()], file["scribble"]
            assert (image.dtype, label.dtype, scribble.dtype) == (np.float32, np.uint8, np.uint16)
        assert (image.min(), image.max()) == (0, 1)
        assert set(np.unique(label)) == {0, 1, 2, 3}
    assert all(cardiac.splits[cardiac.default_split].counts.values())


def test_volumes_are_the_same_twice(tmp_path: Path):
    for name in ("a", "b"):
        phantom.write_volumes(tmp_path / name, n_patients=3, size=32, depth=2, seed=5)
    name = "ACDC_training_volumes/patient031_frame10.h5"
    with h5py.File(tmp_path / "a" / name) as a, h5py.File(tmp_path / "b" / name) as b:
        np.testing.assert_array_equal(a["image"][()], b["image"][()])
    with pytest.raises(ValueError, match="n_patients"):
        phantom.write_volumes(tmp_path, n_patients=2)
