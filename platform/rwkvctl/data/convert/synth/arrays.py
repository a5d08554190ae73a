"""HDF5 and npz files with image and label inside, as research code saves them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from rwkvctl.data.convert.synth.output import Array, write
from rwkvctl.data.convert.synth.scans import scan

CLASSES = "--classes background,label_1,label_2,label_3"
OPTIONS = {
    "volumes": CLASSES,
    "slices": f"{CLASSES} --range 0,1",
    "npz": f"{CLASSES} --range 0,255",
    "channels": f"{CLASSES} --range 0,1",
    "onehot": CLASSES,
    "parts": f"{CLASSES} --range 0,1 --split-from folders",
}


def write_volumes(folder: Path, n: int, size: int, seed: int) -> None:
    """`case_N.h5`: /data/raw (D, H, W) with its spacing as an attribute, /data/seg, and a histogram that is neither."""
    import h5py

    for number in range(1, n + 1):
        own = scan(seed, number, size)
        path = folder / "hearts" / f"case_{number}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            image = file.create_dataset("data/raw", data=own.image, compression="gzip")
            image.attrs["spacing"] = own.spacing
            file.create_dataset("data/seg", data=own.label, compression="gzip")
            file.create_dataset("data/histogram", data=np.bincount(own.label.ravel()))


def write_slices(folder: Path, n: int, size: int, seed: int) -> None:
    """`p01_slice_0.h5`: image (H, W) from 0 to 1 and label, without a spacing."""
    import h5py

    for number in range(1, n + 1):
        own = scan(seed, number, size)
        image = unit(own.image)
        for z in range(len(image)):
            path = folder / f"p{number:02d}_slice_{z}.h5"
            path.parent.mkdir(parents=True, exist_ok=True)
            with h5py.File(path, "w") as file:
                file.create_dataset("image", data=image[z])
                file.create_dataset("label", data=own.label[z])


def write_npz(folder: Path, n: int, size: int, seed: int) -> None:
    """`N.npz`: x (1, H, W, D) of bytes and y (H, W, D), the slices along the last axis."""
    for number in range(1, n + 1):
        own = scan(seed, number, size)
        image = np.round(unit(own.image) * 255).astype(np.uint8)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, x=image.transpose(1, 2, 0)[None], y=own.label.transpose(1, 2, 0).astype(np.int64))
        write(folder / f"{number}.npz", buffer.getvalue())


def write_channels(folder: Path, n: int, size: int, seed: int) -> None:
    """`volume_N_slice_Z.h5` as BraTS comes: image (H, W, 2) from 0 to 1, and mask (H, W, 3) with a plane a class."""
    import h5py

    for number in range(1, n + 1):
        own = scan(seed, number, size)
        image = unit(own.image)
        for z in range(len(image)):
            path = folder / "data" / f"volume_{number}_slice_{z}.h5"
            path.parent.mkdir(parents=True, exist_ok=True)
            with h5py.File(path, "w") as file:
                file.create_dataset("image", data=np.stack([image[z], 1 - image[z]], axis=-1))
                file.create_dataset("mask", data=np.stack([own.label[z] == k for k in (1, 2, 3)], -1).astype(np.uint8))


def write_onehot(folder: Path, n: int, size: int, seed: int) -> None:
    """`case_N.h5`: image (2, D, H, W), and label (4, D, H, W), whose first plane is the background."""
    import h5py

    for number in range(1, n + 1):
        own = scan(seed, number, size)
        path = folder / f"case_{number}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            file.create_dataset("image", data=np.stack([own.image, -own.image]))
            file.create_dataset("label", data=np.stack([own.label == k for k in range(4)]))


def write_parts(folder: Path, n: int, size: int, seed: int) -> None:
    """`train/caseN_sliceZ.npz` and `test/caseN_sliceZ.npz`, which are called as those of Synapse and are none."""
    for number in range(1, n + 1):
        own = scan(seed, number, size)
        image = unit(own.image)
        for z in range(len(image)):
            buffer = io.BytesIO()
            np.savez(buffer, image=image[z], label=own.label[z])
            part = "test" if number > n - 2 else "train"
            write(folder / part / f"case{900 + number:04d}_slice{z:03d}.npz", buffer.getvalue())


def unit(image: Array) -> Array:
    """From 0 to 1."""
    values = image.astype(np.float32)
    return (values - values.min()) / (values.max() - values.min())


def trap_pickled(folder: Path) -> Path:
    """An array of Python objects, which is not opened."""
    path = min(path for path in folder.rglob("*") if path.suffix in (".h5", ".npz"))
    changed = path.with_suffix(".npz")
    path.unlink()
    np.savez(changed, image=np.array([{}, None], object), label=np.zeros((4, 4), np.uint8))
    return changed


def trap_channels(folder: Path) -> Path:
    """An image of three channels beside a label of none."""
    path = min(path for path in folder.rglob("*") if path.suffix in (".h5", ".npz"))
    of_npz = path.suffix == ".npz"
    changed = path.with_suffix(".npz")
    path.unlink()
    image, label = np.zeros((3, 5, 28, 32)), np.zeros((5, 28, 32), np.uint8)
    if of_npz:
        np.savez(changed, x=image, y=label)
    else:
        np.savez(changed, image=image, label=label)
    return changed
