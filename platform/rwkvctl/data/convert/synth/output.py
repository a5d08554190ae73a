"""Writing the files of a synthetic tree: the same bytes for the same content."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]


def encode(pixels: Array, kind: str, **options: Any) -> bytes:
    """An image file of `pixels` (bool is mode 1, uint8 L, RGB or RGBA); kind is Pillow's name: PNG, JPEG, TIFF, BMP."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, kind, **options)
    return buffer.getvalue()


def save(path: Path, pixels: Array, **options: Any) -> None:
    """An image file of the kind that the extension names."""
    kind = Image.registered_extensions()[path.suffix.lower()]
    write(path, encode(pixels, kind, **options))


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def save_h5(path: Path, **arrays: Array) -> None:
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, compression="gzip", compression_opts=1)


def save_nifti(path: Path, array: Array, affine: Array) -> None:
    """`array` is indexed [x, y, z(, t)]; the affine (4, 4) is stored as sform and qform."""
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    nibabel.save(image, path)


def tar_of(files: dict[str, bytes], compression: str = "") -> bytes:
    """A tar with `files` in their order; compression is "" or "gz"."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    if compression != "gz":
        return buffer.getvalue()
    import gzip

    return gzip.compress(buffer.getvalue(), mtime=0)
