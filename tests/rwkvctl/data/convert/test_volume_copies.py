"""Which scans that were saved twice are known to be one, and which are not: as the documentation says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.convert.resplit import add_split
from rwkvctl.data.store.leaks import leak_groups_of
from rwkvctl.data.store.manifest import Manifest

COPY, NEAR, ALIKE = "copy", "near", "alike"
AFFINE = np.diag([1.5, 1.5, 5.0, 1.0])


def scan(seed: int) -> np.ndarray[Any, Any]:
    """Smooth structures of several sizes, the same along the body's axis for a few slices."""
    rng = np.random.default_rng(seed)
    found = sum(ndimage.gaussian_filter(rng.normal(size=(60, 52, 12)), (s, s, 2)) * s**1.3 for s in (1, 2, 5))
    return (400 + 600 * found / np.abs(found).max()).astype(np.int16)


def other_phase(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The same body, in which an eighth of a side has become something else."""
    changed = values.copy()
    changed[20:36, 18:34] = scan(77)[20:36, 18:34]
    return changed


def save(path: Path, values: np.ndarray[Any, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(values, AFFINE).to_filename(path)


def zoomed(values: np.ndarray[Any, Any], *by: float) -> np.ndarray[Any, Any]:
    return np.asarray(ndimage.zoom(values.astype(np.float32), by, order=1), np.float32)


CHANGES: dict[str, tuple[Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]], str]] = {
    "another dtype": (lambda x: x.astype(np.float32), COPY),
    "a wider dtype": (lambda x: x.astype(np.int32), COPY),
    "a window": (lambda x: np.clip(x, 200, 700), NEAR),
    "another unit": (lambda x: (x * 1.7 + 3).astype(np.float32), NEAR),
    "8 bits": (lambda x: ((x - x.min()) / np.ptp(x) * 255).astype(np.uint8), NEAR),
    "slices cut off": (lambda x: x[:, :, 3:], NEAR),
    "mirrored": (lambda x: np.ascontiguousarray(x[::-1]), NEAR),
    "from the head down": (lambda x: np.ascontiguousarray(x[:, :, ::-1]), NEAR),
    "turned": (lambda x: np.ascontiguousarray(x.transpose(1, 0, 2)[::-1]), NEAR),
    "coarser": (lambda x: zoomed(x, 0.7, 0.7, 1), NEAR),
    "finer slices": (lambda x: zoomed(x, 1, 1, 2.5), NEAR),
    "all of it": (lambda x: np.clip(zoomed(x[::-1, :, 2:], 0.8, 0.8, 1), 200, 700) / 500, NEAR),
    "a value changed": (lambda x: np.where(np.arange(x.size).reshape(x.shape) == 7, x + 1, x), NEAR),
    "another phase": (other_phase, ALIKE),
    "another scan": (lambda x: scan(9), ""),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_scan_that_was_saved_twice(tmp_path: Path, change: str):
    altered, kind = CHANGES[change]
    root = tmp_path / "Dataset007_Scans"
    labels = np.zeros((60, 52, 12), np.uint8)
    labels[14:29, 14:29, 4:9] = 1
    # Copies are called as other patients are; `brain_d` is another scan of the same shape and kind.
    for name, seed in {"brain_a": 1, "brain_b": 2, "brain_c": 3, "brain_d": 4}.items():
        save(root / "imagesTr" / f"{name}_0000.nii.gz", scan(seed))
        save(root / "labelsTr" / f"{name}.nii.gz", labels)
    twin = altered(scan(1))
    save(root / "imagesTr" / "twin_0000.nii.gz", twin)
    own = np.zeros(twin.shape, np.uint8)
    own[:20, :20, 2:5] = 1
    save(root / "labelsTr" / "twin.nii.gz", own)
    told = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": 5,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(told))
    manifest = prepare("nnunet", [root], tmp_path / "set", groups="none")
    found = manifest.content.duplicates
    dataset, known = manifest.dataset, kind in (COPY, NEAR)
    for clusters, own_kind in ((found.copies, COPY), (found.near, NEAR)):
        names = [{key.partition("_z")[0] for key in cluster} for cluster in clusters or ()]
        assert names == ([{f"{dataset}_brain_a", f"{dataset}_twin"}] if kind == own_kind else [])
    said = [note for note in manifest.content.warnings if "pairs of volumes" in note]
    assert len(said) == (kind in (NEAR, ALIKE))
    if said:
        assert ("are one scan under two patients" if kind == NEAR else "look like scans of one patient") in said[0]
        assert "brain_a" in said[0]
        assert "twin" in said[0]
    groups = {key.partition("_z")[0]: group for key, group in leak_groups_of(manifest).items()}
    assert (groups[f"{dataset}_brain_a"] == groups[f"{dataset}_twin"]) == known
    assert len(set(groups.values())) == (4 if known else 5)
    [name] = add_split(manifest.root, "grouped:2:1:1")
    assert Manifest.load(manifest.root).splits[name].leak_groups_shared == 0
