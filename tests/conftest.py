"""What all tests share: their order, an empty tracking database, a classifier, and a line about tests left out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .store_door import Door, no_rule, open_door

Reports = list[Any]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that no process is left with one at the end; those that wait for one another together."""
    items.sort(key=lambda item: [item.get_closest_marker(name) is None for name in ("ray", "slow")])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """`242 GPU tests left out: no CUDA device`: skipped tests are easily taken for passed ones."""
    if terminalreporter.config.option.markexpr == "not slow":
        terminalreporter.write_line("slow tests left out: make test-all runs them too", yellow=True)
    skipped: Reports = terminalreporter.stats.get("skipped", [])
    without = [report for report in skipped if "gpu" in getattr(report, "keywords", ())]  # a module's report has none
    if without:
        reasons = {report.longrepr[2].removeprefix("Skipped: ") for report in without}
        terminalreporter.write_line(f"{len(without)} GPU tests left out: {'; '.join(sorted(reasons))}", yellow=True)


@pytest.fixture
def classifier_folder(tmp_path: Path) -> Callable[[str], Path]:
    """Makes a model folder of a timm classifier of two classes, as `pretrain` leaves one."""

    def make(name: str) -> Path:
        import timm

        import rwkv_unet  # noqa: F401  (registers the encoders)
        from rwkvctl.models import bundle

        info = bundle.BundleInfo(
            model={"name": name, "num_classes": 2}, classes=["a", "b"], image_size=32, image_kind="rgb8", channels=3
        )
        bundle.save(tmp_path / "encoder", timm.create_model(name, num_classes=2).state_dict(), info)
        return tmp_path / "encoder"

    return make


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database: migrating one takes seconds, copying it does not."""
    from rwkvctl.runs import mlflow_client

    database = tmp_path_factory.mktemp("mlflow") / "template.db"
    with warnings.catch_warnings():
        # Once per process, both from MLflow about itself: SQLAlchemy 2.1 on its mappers, and its own type hints.
        warnings.filterwarnings("ignore", ".*noload.*")
        warnings.filterwarnings("ignore", ".*Any type hint is inferred.*")
        import mlflow.pyfunc  # noqa: F401

        mlflow_client.connect(f"sqlite:///{database}")
    return database


@pytest.fixture(scope="session")
def door() -> Iterator[Door]:
    """An S3 server, which s3:// leads to."""
    with open_door() as door:
        yield door


@pytest.fixture(autouse=True)
def door_is_open(request: pytest.FixtureRequest) -> None:
    """No test finds the store's door as another one has left it."""
    if "door" in request.fixturenames:
        door = request.getfixturevalue("door")
        door.rule = no_rule
        door.answers.clear()
