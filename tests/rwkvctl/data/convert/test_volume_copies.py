"""Which scans that were saved twice are known to be one, and which are not: as the documentation says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.store.leaks import leak_groups_of

AFFINE = np.diag([1.5, 1.5, 5.0, 1.0])


def scan(seed: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.integers(-200, 1200, (20, 18, 6)).astype(np.int16)


def save(path: Path, values: np.ndarray[Any, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(values, AFFINE).to_filename(path)


CHANGES: dict[str, tuple[Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]], bool]] = {
    "another dtype": (lambda x: x.astype(np.float32), True),
    "a wider dtype": (lambda x: x.astype(np.int32), True),
    "a window": (lambda x: np.clip(x, -100, 400), False),
    "another unit": (lambda x: (x * 1.7 + 3).astype(np.float32), False),
    "a slice cut off": (lambda x: x[:, :, 1:], False),
    "mirrored": (lambda x: np.ascontiguousarray(x[::-1]), False),
    "a value changed": (lambda x: np.where(np.arange(x.size).reshape(x.shape) == 7, x + 1, x), False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_scan_that_was_saved_twice(tmp_path: Path, change: str):
    altered, known = CHANGES[change]
    root = tmp_path / "Dataset007_Scans"
    labels = np.zeros((20, 18, 6), np.uint8)
    labels[4:9, 4:9, 2:4] = 1
    # Copies are called as other patients are; `brain_d` is another scan of the same shape and kind.
    for name, seed in {"brain_a": 1, "brain_b": 2, "brain_c": 3, "brain_d": 4}.items():
        save(root / "imagesTr" / f"{name}_0000.nii.gz", scan(seed))
        save(root / "labelsTr" / f"{name}.nii.gz", labels)
    twin = altered(scan(1))
    save(root / "imagesTr" / "twin_0000.nii.gz", twin)
    save(root / "labelsTr" / "twin.nii.gz", altered(labels) if twin.shape != labels.shape else labels)
    told = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": 5,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(told))
    manifest = prepare("nnunet", [root], tmp_path / "set", groups="none")
    clusters = [{key.partition("_z")[0] for key in cluster} for cluster in manifest.content.duplicates.copies]
    dataset = manifest.dataset
    assert clusters == ([{f"{dataset}_brain_a", f"{dataset}_twin"}] if known else [])
    assert manifest.content.duplicates.near is None
    groups = {key.partition("_z")[0]: group for key, group in leak_groups_of(manifest).items()}
    assert (groups[f"{dataset}_brain_a"] == groups[f"{dataset}_twin"]) == known
    assert len(set(groups.values())) == (4 if known else 5)
