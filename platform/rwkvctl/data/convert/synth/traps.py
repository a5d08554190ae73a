"""What happens to any download between the server and the converter."""

from __future__ import annotations

from pathlib import Path

from rwkvctl.data.convert.synth.output import write
from rwkvctl.data.images import files as image_files

DATA = image_files.EXTENSIONS | {".h5", ".npz", ".npy", ".gz", ".tar", ".parquet", ".mha", ".mhd", ".nrrd", ".dcm"}

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
SPARE = ("Layer_show", "superpixels", "unannotated", "Testing")
"""In the paths of files that no sample needs."""


def trap_litter(folder: Path) -> Path:
    """Files of operating systems: no part of the data."""
    last = _last_file(folder)
    write(last.parent / "Thumbs.db", b"x")
    write(last.parent / ".DS_Store", b"x")
    path = folder / "__MACOSX" / f"._{last.name}"
    write(path, b"\0\5\26\7")
    return path


def trap_letter_case(folder: Path) -> Path:
    """An extension in capital letters instead of small ones, or the reverse: the same file."""
    last = _last_file(folder)
    return last.rename(last.with_suffix(last.suffix.swapcase()))


def trap_copy(folder: Path) -> Path:
    """A second copy of a file, with a space in its name."""
    last = _last_file(folder)
    path = last.with_name(f"{last.stem} copy{last.suffix}")
    path.write_bytes(last.read_bytes())
    return path


def trap_truncated(folder: Path) -> Path:
    """A file of which the second half is missing."""
    last = _last_file(folder)
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    return last


def trap_lfs(folder: Path) -> Path:
    """A file that was cloned without Git LFS."""
    last = _last_file(folder)
    last.write_bytes(LFS_POINTER)
    return last


def trap_empty(folder: Path) -> Path:
    """A file without content, as a full disk leaves."""
    last = _last_file(folder)
    last.write_bytes(b"")
    return last


def trap_link(folder: Path) -> Path:
    """A file that is a link to one outside the folder."""
    last = _last_file(folder)
    target = folder.absolute().parent / f"{folder.name}-outside{last.suffix}"
    last.rename(target)
    last.symlink_to(target)
    return last


def _last_file(folder: Path) -> Path:
    """An image, volume or archive that belongs to a sample."""
    return max(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in DATA and path.is_file() and not any(word in str(path) for word in SPARE)
    )
