"""From the bytes of an upload to the bytes of an answer, by the same functions as `rwkvctl predict`."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from rwkvctl.base.errors import BadFile, UserError
from rwkvctl.config.specs.jobs import LimitsSpec
from rwkvctl.models import predict
from rwkvctl.models.ensemble import Segmenter
from rwkvctl.models.predict_form import Form, maker
from rwkvctl.models.predict_inputs import decode
from rwkvctl.models.predict_record import content as in_mask
from rwkvctl.pictures.palette import palette
from rwkvctl.serving import contents, media, slices
from rwkvctl.serving.refusals import Late, Refused, without_paths
from rwkvctl.serving.room import Room

ENDINGS = {media.PNG: ".png", media.GZIP: ".nii.gz", media.NIFTI: ".nii", media.DICOM: ".dcm"}


class Answer(NamedTuple):
    """A mask in the form that was asked for."""

    media: str
    body: bytes
    kind: str
    """Of the upload: `picture` or `scan`."""


def answer(
    segmenter: Segmenter,
    reference: str,
    data: bytes,
    wishes: list[str],
    limits: LimitsSpec,
    room: Room,
    check: Callable[[], None],
) -> Answer:
    """Segment an upload. `check` raises where the answer is no longer wanted; `reference` is how the model is called.

    Raises:
        Refused: the upload, or what is wanted of it, is not possible.
    """
    found = contents.examine(data, limits)
    wish = media.chosen(wishes, found.kind)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rwkvctl-serve-")))
        stack.enter_context(room.taken(found.size, check))
        check()
        try:
            opened = read(segmenter, reference, data, found.kind, wish, folder, limits)
            return Answer(wish, made(segmenter, opened, found.kind, wish), "scan" if opened.scan else "picture")
        except Refused:
            raise
        except (UserError, BadFile) as error:
            raise Refused(422, without_paths(error, folder)) from None
        except MemoryError:
            raise Refused(413, "is too large for this machine's memory") from None


def read(
    segmenter: Segmenter, reference: str, data: bytes, kind: str, wish: str, folder: Path, limits: LimitsSpec
) -> predict.Opened:
    """An upload as the model takes it; scans by way of a file."""
    target = folder / f"mask{ENDINGS.get(wish, '.nii')}"
    if kind == "picture":
        given = decode(data, segmenter.info)
        return predict.Opened(folder, target, [given.values], given.note, None)
    if kind != "dicom":
        path = folder / f"scan{kind}"
        path.write_bytes(data)
        return predict.read(segmenter.info, path, target)
    series = folder / "series"
    series.mkdir()
    contents.unpack_series(data, series, limits)
    form = Form("dicom-seg", maker=maker([segmenter.info], [reference])) if wish == media.DICOM else Form()
    form.check([series], segmenter.info)
    return predict.read(segmenter.info, series, target, form=form)


def made(segmenter: Segmenter, opened: predict.Opened, kind: contents.Kind, wish: str) -> bytes:
    """The mask of an upload in the form that is wanted."""
    started = time.monotonic()
    masked = predict.segment(segmenter, opened)
    if wish in ENDINGS:
        return predict.write(masked).mask.read_bytes()
    about = described(segmenter, masked.written) | {"seconds": round(time.monotonic() - started, 3)}
    if wish == media.JSON:
        return json.dumps(about).encode() + b"\n"
    colours = palette()[: len(segmenter.info.classes)].tolist()
    about |= {"colours": colours, "forms": media.possible(kind)}
    ids = masked.written.ids
    if opened.scan is not None:
        ids = opened.scan.in_model_axes(ids if ids.ndim == 3 else ids[..., 0])  # a page shows the first volume
    return slices.encode(opened.volumes[0], ids, about)


def described(segmenter: Segmenter, written: predict.Written) -> dict[str, Any]:
    """What is in a mask, by class."""
    classes = segmenter.info.classes
    return {
        "classes": classes,
        "shape": list(written.ids.shape),
        **in_mask(written.ids, classes, written.voxel_ml),
        "voxel_ml": written.voxel_ml,
        "note": written.note,
    }


def stopped(deadline: float, seconds: float, gone: Callable[[], bool]) -> Callable[[], None]:
    """A `check` that raises when the time is over, or nobody waits for the answer."""

    def check() -> None:
        if gone() or time.monotonic() > deadline:
            raise Late(seconds)

    return check
