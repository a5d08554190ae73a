"""The page of an evaluation: what it says, that names cannot break it, and that it works in a browser."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rwkvctl.models.sureness import Sureness
from rwkvctl.pictures import shown
from rwkvctl.pictures.shown import slice_of, stack_of
from rwkvctl.reports import evaluation_page
from rwkvctl.reports.evaluation_page import Evaluation, as_page
from rwkvctl.training import metrics
from rwkvctl.training.calibration import Calibration
from rwkvctl.training.intervals import reliability

from ...browser import Browser, opened

HOSTILE = '</script><img src=x onerror="document.title=1">&"\''
CLASSES = ["background", f"liver {HOSTILE}", "spleen"]


def volume(seed: int, depth: int = 5, side: int = 24) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, truth and prediction; the prediction is off by `seed` pixels."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(depth, side, side)).astype(np.float32)
    truth = np.zeros(image.shape, np.uint8)
    truth[1 : depth - 1, 4:12, 4:12], truth[2, 14:20, 14:20] = 1, 2
    return image, truth, np.roll(truth, seed, axis=2)


def evaluation(count: int = 4, **fields: Any) -> Evaluation:
    made = {f"{HOSTILE if n == 0 else 'case'}{n:03}": volume(n % 8) for n in range(count)}
    cases = {key: metrics.score_case(pred, truth, 3) for key, (_, truth, pred) in made.items()}
    groups = {key: f"patient{number // 2}" for number, key in enumerate(cases)}
    summary = metrics.summarise(cases, CLASSES) | reliability(cases, CLASSES, metrics.USUAL, groups)
    key = f"case{min(count - 1, 3):03}"
    slices = [slice_of(name, *made[name]) for name in [key, next(iter(made))]]
    given = {
        "title": f"data, test: {HOSTILE}",
        "facts": {"model": HOSTILE, "cases": len(cases)},
        "warnings": [f"3 of 4 were trained on {HOSTILE}"],
        "worst": slices[:1],
        "median": slices[1:],
        "volume": stack_of(key, *made[key]),
    }
    given |= {"classes": CLASSES, "summary": summary, "cases": cases, "choices": metrics.USUAL, "groups": groups}
    return Evaluation(**given | fields)


class Tags(HTMLParser):
    """Names of all tags, and what pages could load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.loaded: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href")]
        assert not [name for name, _ in attrs if name.startswith("on")]


def test_names_do_not_become_markup_and_nothing_is_loaded():
    page = as_page(evaluation())
    tags = Tags(page)
    assert tags.names.count("script") == 2
    assert page.count("</script>") == 2
    assert all(each.startswith("data:image/") for each in tags.loaded)
    assert not re.search(r"https?://(?!www\.w3\.org)", page)


def test_a_page_says_what_it_leaves_out(monkeypatch: pytest.MonkeyPatch):
    page = as_page(evaluation())
    assert "left out" not in page
    assert "evenly spread" not in page
    monkeypatch.setattr(evaluation_page, "MOST_ROWS", 3)
    monkeypatch.setattr(evaluation_page, "MOST_BYTES", 10)
    monkeypatch.setattr(shown, "MOST_SLICES", 3)
    monkeypatch.setattr(shown, "LARGEST_SLICE", 12)
    page = as_page(evaluation())
    assert "The 3 rows with the lowest DSC of 8." in page
    assert "2 pictures are left out" in page
    assert "3 of 5 slices, evenly spread; slices of 24x24 shown as 12x12 pixels" in page


def test_calibration_and_predicted_dsc_are_on_the_page():
    found = evaluation()
    assert "trusted" not in as_page(found)
    calibration = Calibration(temperature=2.0)
    logits = torch.randn(3, 20, 20, generator=torch.Generator().manual_seed(0))
    calibration.see(logits, torch.ones(20, 20, dtype=torch.uint8), logits.argmax(0).to(torch.uint8))
    review = {"cases": 4, "spearman": 0.75}
    sureness = {key: Sureness([0.5 + n / 10, None], 0.1) for n, key in enumerate(found.cases)}
    summary = {**found.summary, "calibration": calibration.as_fields(), "review": review}
    page = as_page(replace(found, summary=summary, sureness=sureness))
    assert "The model has temperature 2." in page
    assert "correlation 0.75 over 4 cases" in page
    assert f"<td>case003</td><td>{html.escape(CLASSES[1])}</td><td>patient1</td><td>4</td><td>0.8000</td>" in page
    assert "predicted 0.500, true" in page


def test_a_large_evaluation_has_a_page_of_a_few_megabytes():
    found = evaluation()
    cases = {f"case{n}": scores for n in range(2500) for scores in [found.cases["case001"]]}
    page = as_page(replace(found, cases=cases, worst=(), median=(), volume=None))
    assert "The 4,000 rows with the lowest DSC of 5,000." in page
    assert len(page) < 5 << 20


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    folder = tmp_path_factory.mktemp("page")
    with opened(folder / "profile") as browser:
        evaluation_page.write(folder / "evaluation.html", evaluation())
        browser.open((folder / "evaluation.html").as_uri())
        yield browser


def column(browser: Browser, table: str, number: int) -> list[str]:
    return browser.value(f"[...document.querySelectorAll('#{table} tbody tr')].map(r => r.cells[{number}].textContent)")


def test_a_click_sorts_and_another_turns_round(browser: Browser):
    heading = "#cases th:nth-child(4) button"
    browser.click(heading)
    found = [float(text) for text in column(browser, "cases", 3)]
    assert found == sorted(found, reverse=True)
    browser.click(heading)
    found = [float(text) for text in column(browser, "cases", 3)]
    assert found == sorted(found)
    browser.click("#cases th:nth-child(1) button")
    names = column(browser, "cases", 0)
    assert names[-1] == "case003"
    assert names[0].startswith("</script>")


def test_a_text_filters_the_cases(browser: Browser):
    browser.click("input[type=search]")
    browser.write("CASE002")
    rows = "[...document.querySelectorAll('#cases tbody tr')]"
    assert browser.value(f"{rows}.filter(r => !r.hidden).map(r => r.cells[0].textContent)") == ["case002"] * 2


def test_a_volume_is_scrolled_and_its_layers_are_switched(browser: Browser):
    said = "document.querySelector('.viewer output').textContent"
    assert browser.value(said) == "slice 3 of 5"
    browser.until("document.querySelector('.layers img').naturalWidth > 0")
    browser.wheel(".layers", 100)
    browser.until(f"{said} === 'slice 4 of 5'")
    browser.value("document.querySelector('.viewer').focus({preventScroll: true})")
    browser.key("ArrowUp")
    browser.key("ArrowUp")
    assert browser.value(said) == "slice 2 of 5"
    browser.key("End")
    assert browser.value(said) == "slice 5 of 5"
    before = browser.value("document.querySelector('.layers img.truth').src")
    browser.key("Home")
    browser.click(".viewer input[type=range]")
    assert browser.value(said) == "slice 3 of 5"
    assert browser.value("document.querySelector('.layers img.truth').src") != before
    for layer in ("truth", "prediction"):
        browser.click(f"input[data-layer={layer}]")
        assert browser.value(f"getComputedStyle(document.querySelector('.layers img.{layer}')).display") == "none"
    browser.click("input[data-layer=truth]")
    assert browser.value("getComputedStyle(document.querySelector('.layers img.truth')).display") == "block"


def test_the_page_asks_for_nothing_and_no_script_complains(browser: Browser):
    assert browser.value("document.title").startswith("data, test: </script>")
    assert [address for address in browser.requests() if not address.startswith("file:")] == []
    assert browser.complaints() == []


def test_the_page_works_in_the_frame_in_which_mlflow_shows_artifacts(tmp_path: Path):
    text = json.dumps(as_page(evaluation())).replace("<", "\\u003c")
    script = f"document.querySelector('iframe').src = URL.createObjectURL(new Blob([{text}], {{type: 'text/html'}}))"
    frame = '<iframe sandbox="allow-scripts" width=1000 height=800></iframe>'
    (tmp_path / "viewer.html").write_text(f"<!doctype html><meta charset=utf-8>{frame}<script>{script}</script>")
    with opened(tmp_path / "profile") as browser:
        browser.open((tmp_path / "viewer.html").as_uri())
        browser.enter_frame()
        browser.until("document.querySelector('.layers img.truth').naturalWidth > 0")
        browser.click("#cases th:nth-child(4) button")
        found = [float(text) for text in column(browser, "cases", 3)]
        assert found == sorted(found, reverse=True)
        assert browser.complaints() == []
