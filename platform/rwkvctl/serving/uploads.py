"""The one file of a multipart request, read as it comes: what is too large is refused before it has all been read."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from rwkvctl.serving.refusals import Refused

SLACK = 1 << 16
"""Bytes of a request beside its file."""
HOW = "send one file as multipart/form-data: curl -F file=@FILE"


async def one_file(request: Request, most: int) -> bytes:
    """The content of the upload. Refused, with 4xx, for a request that has not exactly one file of at most `most`
    bytes."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Refused(415, f"is no form; {HOW}")
    stated = request.headers.get("content-length", "")
    if stated.isdigit() and int(stated) > most + SLACK:
        raise too_large(most)
    parser = MultiPartParser(request.headers, limited(request, most), max_files=1, max_fields=8, max_part_size=SLACK)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if "Too many files" in error.message:
            raise Refused(400, f"has several files; {HOW}") from None
        raise Refused(400, f"is a damaged form; {HOW}") from None
    except (KeyError, UnicodeDecodeError, ValueError):  # no boundary, or names in no encoding
        raise Refused(400, f"is a damaged form; {HOW}") from None
    except ClientDisconnect:
        raise Refused(400, "ended before all of it was sent") from None
    try:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if not files:
            raise Refused(400, f"has no file; {HOW}")
        data = await files[0].read()
    finally:
        await form.close()
    if len(data) > most:
        raise too_large(most)
    return data


async def limited(request: Request, most: int) -> AsyncGenerator[bytes, None]:
    received = 0
    async for block in request.stream():
        received += len(block)
        if received > most + SLACK:
            raise too_large(most)
        yield block


def too_large(most: int) -> Refused:
    return Refused(413, f"is larger than {most / 2**20:g} MB (limits.upload_mb)")
