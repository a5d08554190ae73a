"""NRRD and MetaImage files from any source, with their voxels inside or in a file beside them: header alone, or all."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from rwkvctl.base.errors import BadFile, UserError
from rwkvctl.data.images import itk
from rwkvctl.data.images.grid import Grid
from rwkvctl.data.images.nifti import Stored

ENDINGS = (".nrrd", ".nhdr", ".mha", ".mhd")
_NRRD = (".nrrd", ".nhdr")
_DATA_FILE = {True: rb"(?im)^data ?file\s*:[ \t]*(.*?)\r?$", False: rb"(?im)^ElementDataFile\s*=[ \t]*(.*?)\r?$"}
_SPACE = re.compile(rb"(?im)^space\s*:")
_SPACING = {
    True: re.compile(rb"(?im)^(?:space directions|spacings)\s*:"),
    False: re.compile(rb"(?im)^Element(?:Spacing|Size)\s*="),
}


class ItkFile(Protocol):
    """A file on disk or in an archive; `data` is the path of the one or the other."""

    @property
    def kind(self) -> str: ...

    @property
    def data(self) -> str: ...

    @property
    def name(self) -> str: ...

    def open(self) -> BinaryIO: ...


def detached(file: ItkFile) -> str | None:
    """The name of the file beside a header that holds its voxels, None where they follow it; BadFile where it is
    elsewhere: a header may name any file of a machine."""
    head = _head(file)
    found = re.search(_DATA_FILE[_is_nrrd(file)], head)
    name = found[1].decode("utf-8", "replace").strip() if found else ""
    if found is None or name.upper() == "LOCAL":
        return None
    name = name.removeprefix("./")
    if not name or re.search(r"[/\\%\0]", name) or name.upper().startswith("LIST"):
        raise BadFile(f"{file}: keeps its voxels in {name[:60]!r}, which is no file beside it; save it as one file")
    return name


def read_grid(file: ItkFile) -> Grid:
    """From the header alone; BadFile for what is no scan of one channel in three dimensions."""
    with tempfile.TemporaryDirectory(prefix="rwkvctl-") as folder:
        path = Path(folder, f"scan{_ending(file)}")
        head = _head(file)
        if _is_nrrd(file):  # ITK looks for the file of the voxels, were there one
            head = re.sub(_DATA_FILE[True] + rb"\n?", b"", head).rstrip() + b"\n\n"
        path.write_bytes(head)
        with _said_of(file):
            reader = _sitk().ImageFileReader()
            reader.SetFileName(str(path))
            reader.ReadImageInformation()
        grid = _grid(file, reader, reader.GetDimension(), reader.GetNumberOfComponents())
    if not _SPACING[_is_nrrd(file)].search(head):
        grid = grid._replace(measured=False, notes=("the header has no spacing",))
    if _is_nrrd(file) and not _SPACE.search(head):  # MetaImage has an orientation always
        note = "the header has no orientation; the axes are taken to lead left, posterior, superior"
        grid = grid._replace(oriented=False, notes=(*grid.notes, note))
    return grid


def read(file: ItkFile, voxels: ItkFile | None = None) -> Stored:
    """The whole scan; voxels: the file that `detached` named, where it named one. BadFile as in `read_grid`."""
    grid = read_grid(file)
    with _on_disk(file, voxels) as path, _said_of(file):
        stored = _sitk().GetArrayFromImage(_sitk().ReadImage(str(path))).transpose(2, 1, 0)
    if stored.shape != grid.shape:
        raise BadFile(f"{file}: has shape {stored.shape}, its header says {grid.shape}; replace it")
    return Stored(stored, grid, None, None, None)


def _head(file: ItkFile) -> bytes:
    """The header; of a file that holds voxels too, some of them."""
    try:
        with file.open() as stream:
            head = stream.read(itk.LONGEST_HEADER)
    except OSError as error:
        raise BadFile(f"{file}: cannot be read ({error.strerror or error})") from error
    if not head:
        raise BadFile(f"{file}: is empty; replace it")
    return head.partition(b"\n\n")[0] + b"\n\n" if _is_nrrd(file) and b"\n\n" in head else head


def _is_nrrd(file: ItkFile) -> bool:
    return _ending(file) in _NRRD


def _ending(file: ItkFile) -> str:
    return Path(file.name.lower()).suffix


@contextmanager
def _on_disk(file: ItkFile, voxels: ItkFile | None) -> Iterator[Path]:
    """Where a file lies; or a copy, alone with its voxels, of one that is in an archive or names them."""
    if file.kind == "file" and voxels is None:
        yield Path(file.data)
        return
    with tempfile.TemporaryDirectory(prefix="rwkvctl-") as folder:
        path = Path(folder, f"scan{_ending(file)}")
        for own, target in [(file, path)] + ([(voxels, Path(folder, voxels.name))] if voxels else []):
            if own.kind == "file" and own is voxels:
                target.symlink_to(Path(own.data).absolute())
                continue
            with own.open() as stream, target.open("wb") as out:
                while block := stream.read(1 << 20):
                    out.write(block)
        yield path


@contextmanager
def _said_of(file: ItkFile) -> Iterator[None]:
    """ITK's errors, in one line, of the file."""
    try:
        with itk.same_locale():
            yield
    except RuntimeError:  # whose text is a page of ITK's own files and lines
        kind = "NRRD" if _is_nrrd(file) else "MetaImage"
        raise BadFile(f"{file}: is damaged, or no {kind}; replace it") from None


def _grid(file: ItkFile, image: Any, dimension: int, channels: int) -> Grid:
    size = [int(n) for n in image.GetSize()]
    if dimension > 3 and all(n == 1 for n in size[3:]):
        raise BadFile(f"{file}: is of {dimension} dimensions; save it with three")
    if dimension != 3 or channels != 1:
        shape = " x ".join(map(str, size))
        raise BadFile(f"{file}: is {shape} with {channels} channels, where a scan has three axes and one channel")
    return Grid(itk.affine_of(image), tuple(size))


def _sitk() -> Any:
    try:
        import SimpleITK as sitk
    except ModuleNotFoundError:
        raise UserError("NRRD and MHA need SimpleITK: pip install 'rwkvctl[scans]'") from None
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    return sitk
