"""What an upload is, by its first bytes and never by its name; and how large it becomes, before memory is taken."""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from rwkvctl.config.specs.jobs import LimitsSpec
from rwkvctl.data.images import itk
from rwkvctl.data.images.nifti import HEADER_BYTES
from rwkvctl.serving.refusals import Refused

Kind = Literal["picture", ".nii", ".nii.gz", ".nrrd", ".mha", "dicom"]
PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"BM")
GZIP, ZIPS = b"\x1f\x8b", (b"PK\x03\x04", b"PK\x05\x06")
KINDS = "a PNG, JPEG, TIFF or BMP image, a NIfTI, NRRD or MHA scan, or a zip with a DICOM series"
BLOCK = 1 << 20


class Content(NamedTuple):
    """An upload that may be decoded: its kind, and the pixels or voxels that it has at most."""

    kind: Kind
    size: int


def examine(data: bytes, limits: LimitsSpec) -> Content:
    """Refused, with 4xx, for what is of no known kind, damaged, or too large when it is decoded."""
    kind = kind_of(data)
    size = {"picture": pixels_of, "dicom": voxels_of_zip}.get(kind, voxels_of_scan)(data, limits)
    most, what = (limits.pixels, "pixels") if kind == "picture" else (limits.voxels, "voxels")
    if size > most:
        raise Refused(413, f"has {size:,} {what} when it is decoded, where {most:,} are the most (limits.{what})")
    return Content(kind, size)


def kind_of(data: bytes) -> Kind:
    if not data:
        raise Refused(422, "the upload is empty")
    if data.startswith(PICTURES):
        return "picture"
    if data.startswith(ZIPS):
        return "dicom"
    if data.startswith(GZIP):
        if is_nifti(gunzipped_head(data)):
            return ".nii.gz"
        raise Refused(415, f"is a gzip file, but not of a NIfTI scan; give {KINDS}")
    if is_nifti(data):
        return ".nii"
    if data.startswith(b"NRRD"):
        return ".nrrd"
    if re.match(rb"\s*(ObjectType|NDims)\s*=", data[:64]):
        return ".mha"
    raise Refused(415, f"is of no known kind; give {KINDS}")


def is_nifti(head: bytes) -> bool:
    return head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] == b"n+2\0"


def gunzipped_head(data: bytes) -> bytes:
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(data[: 1 << 16], HEADER_BYTES)
    except zlib.error:
        raise Refused(422, "is a damaged gzip file; send it again") from None


# How large -----------------------------------------------------------------------------------------------------------


def pixels_of(data: bytes, limits: LimitsSpec) -> int:
    """Of all pages of an image."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            pages = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Refused(413, f"has more than {limits.pixels:,} pixels when it is decoded (limits.pixels)") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, struct.error, EOFError, KeyError, TypeError):
        raise Refused(422, "is no image that can be read; send it again") from None
    return int(width * height * pages)


def voxels_of_scan(data: bytes, limits: LimitsSpec) -> int:
    if data.startswith(GZIP):
        refuse_gzip_bomb(data, limits)
        return voxels_of_nifti(gunzipped_head(data))
    if is_nifti(data):
        return voxels_of_nifti(data[:HEADER_BYTES])
    return voxels_of_text_header(data)


def refuse_gzip_bomb(data: bytes, limits: LimitsSpec) -> None:
    """Unpacks it once, a block at a time, and keeps nothing."""
    most = 16 * limits.voxels + BLOCK  # complex128 is the widest type that a header can name
    unpacked, rest = 0, memoryview(data)
    while rest:  # gzip files may be put one behind the other
        stream, tail = zlib.decompressobj(zlib.MAX_WBITS | 16), rest
        try:
            while not stream.eof:
                if not tail:
                    raise Refused(422, "is a gzip file that was cut off; send it again")
                block = stream.decompress(tail[:BLOCK], BLOCK)
                unpacked += len(block)
                tail = tail[min(BLOCK, len(tail)) - len(stream.unconsumed_tail) :]
                if unpacked > most:
                    raise Refused(413, f"unpacks to more than {most:,} bytes (limits.voxels)")
        except zlib.error:
            raise Refused(422, "is a damaged gzip file; send it again") from None
        consumed = len(rest) - len(tail) - len(stream.unused_data)
        rest = rest[max(1, consumed) :]
        if bytes(rest[:2]) != GZIP:  # padding, which gzip allows
            return


def voxels_of_nifti(head: bytes) -> int:
    """From `dim` of a NIfTI header, in either order of bytes."""
    wide = head[4:8] == b"n+2\0"
    if len(head) < (HEADER_BYTES if wide else 348):
        raise Refused(422, "is a NIfTI file that was cut off; send it again")
    where, form = (16, "8q") if wide else (40, "8h")
    for order in "<>":
        axes, *dims = struct.unpack_from(order + form, head, where)
        if 1 <= axes <= 7 and all(dim > 0 for dim in dims[:axes]):
            return int(np.prod([int(dim) for dim in dims[:axes]], dtype=object))
    raise Refused(422, "its NIfTI header is damaged; send it again")


def voxels_of_text_header(data: bytes) -> int:
    """Of NRRD (`sizes: 512 512 100`) and MetaImage (`DimSize = 512 512 100`)."""
    found = re.findall(rb"(?im)^(?:sizes\s*:|DimSize\s*=)\s*([0-9 \t]+)", data[: itk.LONGEST_HEADER])
    sizes = [[int(size) for size in line.split()] for line in found if len(line) < 100]
    if not sizes or any(min(line, default=0) < 1 for line in sizes):
        raise Refused(422, "its header does not say how large it is; send it again")
    return max(int(np.prod(line, dtype=object)) for line in sizes)


# A zip ---------------------------------------------------------------------------------------------------------------


def voxels_of_zip(data: bytes, limits: LimitsSpec) -> int:
    """From its table of contents: a voxel of a scanner takes a byte at least, unless it is compressed, which
    `unpack_series` looks at file by file."""
    files = files_of_zip(data, limits)
    return min(limits.voxels, sum(file.file_size for file in files))


def files_of_zip(data: bytes, limits: LimitsSpec) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            files = [file for file in archive.infolist() if not file.is_dir()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error, UnicodeDecodeError):
        raise Refused(422, "is a damaged zip file; send it again") from None
    if len(files) > limits.files:
        raise Refused(413, f"has {len(files):,} files, where {limits.files:,} are the most (limits.files)")
    for file in files:
        parts = re.split(r"[/\\]", file.filename)
        if ".." in parts or file.filename.startswith(("/", "\\")) or ":" in parts[0]:
            raise Refused(422, "has a file whose name leads out of the zip; pack the series alone")
        if file.flag_bits & 0x1:
            raise Refused(422, "is an encrypted zip file; pack it without a password")
    if (total := sum(file.file_size for file in files)) > 4 * limits.voxels + BLOCK:
        raise Refused(413, f"unpacks to {total:,} bytes, where {4 * limits.voxels:,} are the most (limits.voxels)")
    return files


def unpack_series(data: bytes, folder: Path, limits: LimitsSpec) -> None:
    """The DICOM files of a zip, whatever folders they are in, under names of our own in one folder."""
    files, kept, left = files_of_zip(data, limits), 0, 4 * limits.voxels + BLOCK
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for file in files:
                with archive.open(file) as stream:
                    head = stream.read(itk.DICOM_AT + len(itk.DICOM))
                    if not head.endswith(itk.DICOM) or len(head) < itk.DICOM_AT:
                        continue
                    with (folder / f"{kept:06d}.dcm").open("wb") as target:
                        target.write(head)
                        while block := stream.read(BLOCK):
                            left -= len(block)
                            if left < 0:  # the table of contents may lie
                                raise Refused(413, "unpacks to more than its table of contents says")
                            target.write(block)
                kept += 1
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError, ValueError):
        raise Refused(422, "is a damaged zip file; send it again") from None
    if not kept:
        raise Refused(422, f"is a zip without DICOM files; give {KINDS}")
    refuse_large_series(folder, limits)


def refuse_large_series(folder: Path, limits: LimitsSpec) -> None:
    """By the header of every file, since compressed slices are larger than they look."""
    try:
        import SimpleITK as sitk
    except ModuleNotFoundError:
        raise Refused(415, "this server reads no DICOM: it lacks rwkvctl[scans]") from None
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader, voxels = sitk.ImageFileReader(), 0
    with itk.same_locale():
        for path in sorted(folder.iterdir()):
            reader.SetFileName(str(path))
            try:
                reader.ReadImageInformation()
            except RuntimeError:
                raise Refused(422, "has a DICOM file that cannot be read; send it again") from None
            voxels += int(np.prod(reader.GetSize(), dtype=object))
            if voxels > limits.voxels:
                raise Refused(413, f"has more than {limits.voxels:,} voxels when it is decoded (limits.voxels)")
