"""Wrong, huge and hostile requests: one line of JSON, a status of 4xx, no path of the server, and it goes on."""

from __future__ import annotations

import gzip
import io
import re
import socket
import struct
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from .conftest import Served, form, served, until

TOKEN = "correct horse battery staple".replace(" ", "-")
LIMITS = {"upload_mb": 1, "pixels": 10_000, "voxels": 20_000, "files": 20}


@pytest.fixture(scope="module")
def pictures(colour_model: Path) -> Iterator[Served]:
    with served(str(colour_model), limits=LIMITS) as server:
        yield server
        good(server)  # after all that was done to it


@pytest.fixture(scope="module")
def scans(ct_model: Path) -> Iterator[Served]:
    with served(str(ct_model), limits=LIMITS) as server:
        yield server
        assert server.post(("ct", ct())).status == 200


def good(server: Served) -> None:
    assert server.post(("a.png", png())).status == 200


def png(width: int = 40, height: int = 30, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def ct(shape: tuple[int, ...] = (20, 16, 5), dtype: type = np.int16) -> bytes:
    voxels = np.random.default_rng(0).integers(-200, 300, shape).astype(dtype)
    return gzip.compress(nibabel.Nifti1Image(voxels, np.eye(4)).to_bytes())


def claimed(width: int, height: int) -> bytes:
    """A PNG whose header says that it is larger than it is."""
    data = bytearray(png())
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def pages(count: int) -> bytes:
    buffer = io.BytesIO()
    page = Image.new("L", (90, 90))
    page.save(buffer, "TIFF", save_all=True, append_images=[page] * (count - 1))
    return buffer.getvalue()


def large_header() -> bytes:
    data = bytearray(gzip.decompress(ct()))
    data[42:48] = struct.pack("<3h", 30000, 30000, 30000)
    return gzip.compress(bytes(data))


def bomb() -> bytes:
    """A scan of the right size, and behind it zeros for which there is no room."""
    return gzip.compress(gzip.decompress(ct()) + bytes(64 << 20))


def packed(*files: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return buffer.getvalue()


def slice_of(size: int) -> bytes:
    return bytes(128) + b"DICM" + bytes(size)


def lying_zip() -> bytes:
    """Its table of contents says 4 KB, its file is 4 MB."""
    data = bytearray(packed(("a", slice_of(4 << 20))))
    whole = struct.pack("<I", 132 + (4 << 20))
    place = data.rindex(whole)
    data[place : place + 4] = struct.pack("<I", 4096)
    return bytes(data)


def encrypted() -> bytes:
    data = bytearray(packed(("a.dcm", slice_of(10))))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


NRRD = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 4 4 4\nencoding: raw\n"
MHA = b"ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementType = MET_SHORT\nElementDataFile = "
UPLOADS: dict[str, tuple[Callable[[], bytes], int, str]] = {
    "empty": (lambda: b"", 422, "the upload is empty"),
    "text": (lambda: b"hello, I am called image.png", 415, "is of no known kind; give a PNG"),
    "script": (lambda: b"<script>alert(1)</script>", 415, "is of no known kind"),
    "pickle": (lambda: b"\x80\x04\x95", 415, "is of no known kind"),
    "truncated png": (lambda: png()[:60], 422, ""),
    "half a jpeg header": (lambda: b"\xff\xd8\xff\xe0", 422, "is no image that can be read"),
    "bomb png": (lambda: claimed(30000, 30000), 413, "more than 10,000 pixels when it is decoded"),
    "large png": (lambda: png(200, 100), 413, "has 20,000 pixels when it is decoded, where 10,000 are the most"),
    "huge png": (lambda: claimed(2**31 - 1, 2**31 - 1), 413, "pixels"),
    "many pages": (lambda: pages(3), 413, "has 24,300 pixels"),
    "truncated nii.gz": (lambda: ct()[:-100], 422, "cut off"),
    "damaged nii.gz": (lambda: ct()[:400] + b"\0" * 50 + ct()[450:], 422, "damaged gzip"),
    "gzip of text": (lambda: gzip.compress(b"text" * 200), 415, "is a gzip file, but not of a NIfTI scan"),
    "no gzip at all": (lambda: b"\x1f\x8b" + bytes(100), 422, "damaged gzip"),
    "large header": (large_header, 413, "27,000,000,000,000 voxels when it is decoded, where 20,000 are"),
    "gzip bomb": (bomb, 413, "unpacks to more than"),
    "five axes": (lambda: ct((8, 8, 4, 2, 2)), 422, ""),
    "many volumes": (lambda: ct((20, 16, 5, 20)), 413, "has 32,000 voxels when it is decoded"),
    "complex voxels": (lambda: ct(dtype=np.complex64), 422, "its voxels are of type complex64"),
    "header alone": (lambda: gzip.decompress(ct())[:346] + b"1", 415, "is of no known kind"),
    "cut header": (lambda: gzip.decompress(ct())[:352], 422, ""),
    "nrrd of another file": (lambda: NRRD + b"data file: /etc/passwd\n\n", 422, "keeps its voxels in another file"),
    "nrrd without voxels": (lambda: NRRD + b"\n", 422, "cannot be read (it is damaged)"),
    "large nrrd": (lambda: NRRD.replace(b"4 4 4", b"9999 9999 9999") + b"\n", 413, "voxels when it is decoded"),
    "nrrd without size": (lambda: b"NRRD0004\n\n", 422, "does not say how large it is"),
    "mha of another file": (lambda: MHA + b"/etc/passwd\n", 422, "keeps its voxels in another file"),
    "large mha": (lambda: MHA.replace(b"4 4 4", b"9999 9999 9999") + b"LOCAL\n", 413, "voxels when it is decoded"),
    "empty zip": (lambda: packed(), 422, "is a zip without DICOM files"),
    "zip without dicom": (lambda: packed(("a.txt", b"x" * 500)), 422, "is a zip without DICOM files"),
    "zip that leads out": (lambda: packed(("../../etc/cron.d/x", slice_of(9))), 422, "leads out of the zip"),
    "zip with a root": (lambda: packed(("/etc/passwd", slice_of(9))), 422, "leads out of the zip"),
    "zip for windows": (lambda: packed(("..\\x", slice_of(9))), 422, "leads out of the zip"),
    "zip of many files": (lambda: packed(*((f"{n}", b"") for n in range(21))), 413, "has 21 files, where 20"),
    "zip bomb": (lambda: packed(("a", bytes(40 << 20))), 413, "unpacks to 41,943,040 bytes"),
    "lying zip": (lying_zip, 422, "damaged zip"),
    "damaged zip": (lambda: packed(("a", slice_of(999)))[:-30], 422, "damaged zip"),
    "encrypted zip": (encrypted, 422, "encrypted"),
    "no slices": (lambda: packed(("a.dcm", slice_of(300))), 422, "cannot be read"),
    "too large": (lambda: bytes((1 << 20) + 1), 413, "is larger than 1 MB (limits.upload_mb)"),
}


@pytest.mark.parametrize("name", UPLOADS)
def test_an_upload_that_cannot_be_segmented(scans: Served, pictures: Served, name: str):
    make, status, said = UPLOADS[name]
    content = make()
    server = pictures if content.startswith((b"\x89PNG", b"II*")) else scans
    reply = server.post((f"../../{name}.png", content))
    assert reply.status == status, reply
    assert said in reply.error
    clean(reply.error)


def clean(line: str) -> None:
    """Nothing of the server in a line but what the caller needs."""
    assert not re.search(r"/tmp|/etc|/work|/root|Traceback|site-packages|File \"|rwkvctl-serve", line), line


def test_a_kind_that_the_model_does_not_take(scans: Served, pictures: Served):
    refusal = pictures.post(("ct", ct()))
    assert (refusal.status, "takes colour images" in refusal.error) == (422, True)
    clean(refusal.error)
    deep = io.BytesIO()
    Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40)).save(deep, "PNG")
    refusal = pictures.post(("deep", deep.getvalue()))
    assert (refusal.status, "16-bit values" in refusal.error) == (422, True)


def line(*parts: str) -> bytes:
    return "\r\n".join(parts).encode()


FORMS: dict[str, tuple[Any, str, int, str]] = {
    "not a form": (png(), "image/png", 415, "is no form; send one file as multipart/form-data"),
    "no type": (png(), "", 415, "is no form"),
    "no boundary": (b"x", "multipart/form-data", 400, "is a damaged form"),
    "no parts": (b"nothing", "multipart/form-data; boundary=b", 400, ""),
    "no file": (
        line("--b", 'Content-Disposition: form-data; name="file"', "", "text", "--b--", ""),
        "multipart/form-data; boundary=b",
        400,
        "has no file",
    ),
    "no name": (line("--b", "X: y", "", "text", "--b--", ""), "multipart/form-data; boundary=b", 400, "damaged form"),
    "two files": (*form(("a.png", png()), ("b.png", png())), 400, "has several files"),
    "many fields": (
        line(*(["--b", 'Content-Disposition: form-data; name="a"', "", "x"] * 20), "--b--", ""),
        "multipart/form-data; boundary=b",
        400,
        "damaged form",
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_form_that_is_none(pictures: Served, name: str):
    body, kind, status, said = FORMS[name]
    reply = pictures.ask("POST", "/predict", body, {"Content-Type": kind} if kind else {})
    assert (reply.status, said in reply.error) == (status, True), reply


def test_methods_and_paths(pictures: Served):
    for method, path, status in (
        ("GET", "/predict", 405),
        ("PUT", "/predict", 405),
        ("POST", "/model", 405),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/docs", 404),
        ("DELETE", "/", 405),
    ):
        reply = pictures.ask(method, path)
        assert reply.status == status, (method, path)
        clean(reply.error)


def test_what_is_accepted(scans: Served, pictures: Served):
    for server, upload, accept, status in (
        (pictures, png(), "image/*", 200),
        (pictures, png(), "text/html, image/png;q=0.5", 200),
        (pictures, png(), "application/*;q=0.1, */*;q=0.2", 200),
        (pictures, png(), "text/html", 406),
        (pictures, png(), "image/png;q=0", 406),
        (pictures, png(), "image/png;q=many", 406),
        (pictures, png(), "application/gzip", 406),
        (scans, ct(), "image/png", 406),
        (scans, ct(), "application/json;q=0.1, application/gzip", 200),
    ):
        reply = server.post(("x", upload), accept=accept)
        assert reply.status == status, (accept, reply)
        if status == 406:
            assert reply.error.startswith("Accept: ")
        elif server is scans:
            assert reply.headers["content-type"] == "application/gzip"
        else:
            assert reply.headers["content-type"] == "image/png"


# Size, before it is read ---------------------------------------------------------------------------------------------


def conversation(port: int, head: str, blocks: Iterator[bytes]) -> tuple[bytes, int]:
    """Send blocks until there is an answer; the answer, and the bytes that were sent."""
    sent = 0
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(head.encode())
        connection.settimeout(0.05)
        answer = b""
        try:
            for block in blocks:
                connection.settimeout(60)
                connection.sendall(block)
                sent += len(block)
                connection.settimeout(0.01)
                try:
                    answer = connection.recv(65536)
                    break
                except TimeoutError:
                    continue
            connection.settimeout(60)
            while block := connection.recv(65536):
                answer += block
        except (ConnectionResetError, BrokenPipeError):
            pass
    return answer, sent


def endless(opening: bytes, block: bytes) -> Iterator[bytes]:
    yield opening
    while True:
        yield block


PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
HEAD = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"


def test_a_size_that_is_stated_is_refused_before_anything_is_sent(pictures: Served):
    answer, sent = conversation(pictures.port, f"{HEAD}Content-Length: 900000000000\r\n\r\n", iter([b""]))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()
    assert sent == 0


def test_a_size_that_is_not_stated_is_refused_when_it_is_reached(pictures: Served):
    def chunk(data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data)

    blocks = endless(chunk(PART), chunk(bytes(1 << 16)))
    answer, sent = conversation(pictures.port, f"{HEAD}Transfer-Encoding: chunked\r\n\r\n", blocks)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert sent < 16 << 20, "the socket's buffers, and not all that somebody cares to send"


def test_an_upload_that_never_ends_gives_its_place_back(colour_model: Path):
    with served(str(colour_model), limits={"seconds": 0.5}) as server:
        head = f"{HEAD}Content-Length: 1000\r\n\r\n"
        answer, _ = conversation(server.port, head, iter([PART, b"x"]))
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert server.front.going_on == 0
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head.encode() + PART)
            until(lambda: server.front.going_on == 1)
        until(lambda: server.front.going_on == 0)


# Who may ask ---------------------------------------------------------------------------------------------------------


def test_nobody_without_the_token(colour_model: Path, capfd: pytest.CaptureFixture[str]):
    with served(str(colour_model), token=TOKEN) as server:
        for wrong in (
            None,
            "",
            "Bearer",
            "Bearer x",
            f"Basic {TOKEN}",
            f"Bearer {TOKEN}x",
            f"Bearer {TOKEN[:-1]}",
            TOKEN,
        ):
            headers = {} if wrong is None else {"Authorization": wrong}
            for method, path in (("POST", "/predict"), ("GET", "/model"), ("GET", "/metrics"), ("GET", "/nothing")):
                reply = server.ask(method, path, headers=headers)
                assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer"), (path, wrong)
                assert reply.error == "give the token of this server: Authorization: Bearer TOKEN"
        assert server.ask("GET", "/healthz").status == 200
        assert server.ask("GET", "/").status == 200
        server.headers = {"Authorization": f"Bearer {TOKEN}"}
        good(server)
        assert server.ask("GET", "/metrics").status == 200
        answer, _ = conversation(server.port, f"{HEAD}Content-Length: 1000000\r\n\r\n", iter([b""]))
        assert answer.startswith(b"HTTP/1.1 401 "), "before anything is read"
    captured = capfd.readouterr()
    assert TOKEN[:8] not in captured.out + captured.err


# Too many, too long --------------------------------------------------------------------------------------------------


def test_more_than_can_wait_is_told_to_come_again(colour_model: Path):
    with served(str(colour_model), at_once=1, limits={"waiting": 1}) as server:
        network, replies = server.replica.follower.served.network, []
        with network._running:
            threads = [threading.Thread(target=lambda: replies.append(server.post(("x", png())))) for _ in range(2)]
            for thread in threads:
                thread.start()
            until(lambda: server.front.going_on == 2)
            refusal = server.post(("x", png()))
            assert (refusal.status, refusal.headers["retry-after"]) == (503, "1")
            assert refusal.error == "too many requests at the moment; try again"
            assert server.ask("GET", "/healthz").status == 200
        for thread in threads:
            thread.join()
        assert [reply.status for reply in replies] == [200, 200]
        good(server)


def test_what_takes_too_long_is_ended_and_makes_room(ct_model: Path):
    """A scan of many batches, each of which is slow; the next request finds a free place."""
    with served(str(ct_model), at_once=1, limits={"seconds": 1.0}) as server:
        network = server.replica.follower.served.network
        slow = network.network.register_forward_pre_hook(lambda *_: time.sleep(0.3))
        reply = server.post(("x", ct((16, 16, 200))))
        assert (reply.status, reply.error[:22]) == (504, "took more than 1 s; gi"), reply
        slow.remove()
        seen = network.batches
        assert seen < 25, "it was ended"
        assert server.post(("x", ct())).status == 200
        assert server.front.going_on == 0


def test_a_caller_that_hangs_up_gives_its_place_back(ct_model: Path):
    with served(str(ct_model), at_once=1) as server:
        network = server.replica.follower.served.network
        slow = network.network.register_forward_pre_hook(lambda *_: time.sleep(0.2))
        body, kind = form(("x", ct((16, 16, 400))))
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            until(lambda: network.batches)
        slow.remove()
        assert server.post(("x", ct())).status == 200
        assert network.batches < 50
