"""The pictures and the page of a sweep, from its study."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rwkvctl.cli import show
from rwkvctl.sweeps import report
from rwkvctl.sweeps.table import table

from .conftest import Driver, sweep

PARAMS = {"loss.alpha": {"float": [0.0, 1.0]}, "model.ccm": {"choice": [True, False]}}
TWO = [{"metric": "dsc_strict", "direction": "maximize"}, {"metric": "macs_paper", "direction": "minimize"}]


def trained(database: Any, trials: int, **fields: Any) -> Driver:
    driver = Driver(sweep(PARAMS, trials, **fields), database)
    for number in range(trials):
        trial, point = driver.begin()  # type: ignore[misc]
        driver.study.note(trial, run=f"own-{number:04d}", macs_paper=10**9 + number, parameters=10**6)
        if number == 3:
            driver.study.infeasible(trial, "out of memory <1 GB>")
        else:
            goals = [1 - (point["loss.alpha"] - 0.3) ** 2, 10.0 + number]
            driver.study.complete(trial, goals[: len(driver.spec.goals)])
    return driver


def drawn(driver: Driver, folder: Path) -> dict[str, Any]:
    values = table(driver.spec, driver.study) | {"importance": report.importance(driver.spec, driver.study)}
    return values | {"page": str(report.write(driver.spec, driver.study, values, folder))}


@pytest.mark.slow
def test_one_objective(database: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    values = drawn(trained(database, 8), tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "history.png", "importance.png", "parallel.png", "slices.png",
    }  # fmt: skip
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as picture:
            assert picture.width > 500
            assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 10
    assert values["importance"]["dsc_strict"]["loss.alpha"] > 0.8
    show.sweep(tmp_path, values)
    printed = capsys.readouterr().out
    assert "1 infeasible: out of memory <1 GB>" in printed
    assert re.search(r"importance for dsc_strict: loss.alpha \d+%, model.ccm \d+%", printed)
    assert f"pictures: {tmp_path}/sweep.html" in printed


def test_the_page_needs_nothing_from_elsewhere(database: Any, tmp_path: Path):
    drawn(trained(database, 8, objectives=TWO), tmp_path)
    assert (tmp_path / "front.png").exists()

    class Links(HTMLParser):
        found: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.found += [value or "" for name, value in attrs if name in ("src", "href")]

    page = (tmp_path / "sweep.html").read_text()
    Links().feed(page)
    assert len(Links.found) == 9
    assert all(link.startswith("data:image/png;base64,") for link in Links.found)
    assert "out of memory &lt;1 GB&gt;" in page
    assert page.count("<tr class=front>") >= 1


def test_a_sweep_of_one_trial_has_a_page_without_pictures(database: Any, tmp_path: Path):
    values = drawn(trained(database, 1), tmp_path)
    assert list(tmp_path.glob("*.png")) == []
    assert "own-0000" in Path(values["page"]).read_text()
    assert values["importance"] == {}


def test_the_front_is_marked_in_the_table(database: Any):
    values = table((driver := trained(database, 6, objectives=TWO)).spec, driver.study)
    printed = io.StringIO()
    from rich.console import Console

    Console(file=printed, width=250).print(show.trials_table(values["trials"]))
    assert "* on the front" in printed.getvalue()
    assert len(re.findall(r"│ +\* │", printed.getvalue())) == len(values["front"]) >= 1
