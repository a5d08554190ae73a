"""The page that a file is dropped on, in a real browser where there is one."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rwkvctl.models import bundle
from rwkvctl.pictures.palette import palette

from ...browser import Browser, opened
from ..data.images.dicom_series import write_ct
from .conftest import served
from .test_masks import packed_series
from .test_refusals import TOKEN

DROP = """
(async () => {
  const bytes = Uint8Array.from(atob(%s), c => c.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], %s));
  document.getElementById("drop").dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, bubbles: true}));
})()
"""
PIXEL = "[...document.querySelector('#picture').getContext('2d').getImageData(%d, %d, 1, 1).data]"


def drop(page: Browser, name: str, content: bytes) -> None:
    page.value(DROP % (json.dumps(base64.b64encode(content).decode()), json.dumps(name)))


def text(page: Browser, selector: str) -> str:
    return str(page.value(f"document.querySelector({json.dumps(selector)}).innerText"))


@pytest.mark.slow
def test_an_image_and_its_mask(colour_model: Path, tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    upload = (tmp_path / "image.png").read_bytes()
    with served(str(colour_model), token=TOKEN) as server, opened(tmp_path / "browser") as page:
        page.open(f"http://127.0.0.1:{server.port}/")
        page.until("!document.querySelector('#key').hidden")
        drop(page, "image.png", upload)
        page.until("document.querySelector('#said').className === 'bad'")
        assert text(page, "#said").startswith("image.png: give the token of this server")
        page.click("#token")
        page.write(TOKEN)
        page.click("#key button")
        page.until("document.querySelector('#key').hidden")
        sha = bundle.read_info(colour_model).weights_sha256
        assert text(page, "#model") == f"{colour_model.name}, version {sha[:12]}: takes colour images"
        drop(page, "image.png", upload)
        page.until("!document.querySelector('#result').hidden")
        server.headers = {"Authorization": f"Bearer {TOKEN}"}
        (tmp_path / "mask.png").write_bytes(server.post(("x", upload)).body)
        with Image.open(tmp_path / "mask.png") as image:
            mask = np.asarray(image)
        rows = " ".join(text(page, "#classes").split())
        for number, name in ((1, "liver"), (2, "tumour")):
            assert f"{name} {(mask == number).sum()}" in rows
            y, x = np.argwhere(mask == number)[0]
            page.value("document.querySelector('#strength').value = 100, draw()")
            assert page.value(PIXEL % (x, y)) == [*palette()[number].tolist(), 255]
            page.value("document.querySelector('#strength').value = 0, draw()")
            assert page.value(PIXEL % (x, y)) == [*pixels[y, x].tolist(), 255]
        assert page.value("document.querySelector('#slices').hidden")
        assert [text(page, f"#downloads button:nth-child({n})") for n in (1, 2)] == ["Mask as PNG", "Mask as JSON"]
        wrong = [event for event in page.complaints() if "401" not in json.dumps(event)]
        assert wrong == []
        assert {address.rpartition("/")[0] for address in page.requests()} == {f"http://127.0.0.1:{server.port}"}


@pytest.mark.slow
def test_a_series_is_scrolled_and_a_bad_file_is_told(ct_model: Path, tmp_path: Path):
    hounsfield = np.random.default_rng(1).integers(-200, 300, (24, 32, 6))
    series = packed_series(write_ct(tmp_path / "series", hounsfield))
    with served(str(ct_model)) as server, opened(tmp_path / "browser") as page:
        page.open(f"http://127.0.0.1:{server.port}/")
        drop(page, "notes.txt", b"<b>not an image</b>")
        page.until("document.querySelector('#said').className === 'bad'")
        assert text(page, "#said").startswith("notes.txt: is of no known kind")
        drop(page, "series.zip", series)
        page.until("!document.querySelector('#result').hidden")
        assert text(page, "#unit") == "ml"
        reply = server.post(("x", series), accept="application/vnd.rwkvctl.slices")
        about = json.loads(reply.body.partition(b"\n")[0])
        depth, height, width = about["depth"], about["height"], about["width"]
        size = depth * height * width
        image = np.frombuffer(reply.body[-2 * size : -size], np.uint8).reshape(depth, height, width)
        page.value("document.querySelector('#slice').value = 2, document.querySelector('#strength').value = 0, draw()")
        assert text(page, "#place") == "3 of 6"
        page.wheel("#picture", 100)
        page.until("document.querySelector('#place').innerText === '4 of 6'")
        grey = int(image[3, 5, 7])
        assert page.value(PIXEL % (7, 5)) == [grey, grey, grey, 255]
        page.value("document.querySelector('#picture').focus()")
        for _ in range(5):
            page.key("ArrowUp")
        page.until("document.querySelector('#place').innerText === '1 of 6'")
        assert "Mask as DICOM-SEG" in text(page, "#downloads")
        assert [event for event in page.complaints() if "415" not in json.dumps(event)] == []
