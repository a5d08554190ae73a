"""A registry of two versions, and what makes them. MLflow here is real, on SQLite."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from rwkv_unet import create_model
from rwkvctl.models import bundle
from rwkvctl.registry.measured import Measured
from rwkvctl.registry.register import record_scores, register
from rwkvctl.runs.journal import Journal
from rwkvctl.runs.sync import Syncer

OWN = {"dataset": "phantom", "fingerprint": "f00d" * 16, "split": "random-41", "part": "test", "cases": 12}
DSC = "test/dsc_strict/mean"


def synced_run(folder: Path, uri: str, **metrics: float) -> Path:
    with Journal(folder / "journal.jsonl") as journal:
        journal.metrics(metrics, step=10)
        journal.event("end", status="FINISHED")
    Syncer(folder, uri, "e").push()
    return folder


def model_folder(folder: Path, seed: int = 0, *, kind: str = "rgb8", fingerprint: str = "f00d" * 16) -> Path:
    torch.manual_seed(seed)
    info = bundle.BundleInfo(
        model={"name": "rwkv_unet_t", "num_classes": 2},
        classes=["background", "polyp"],
        image_size=32,
        image_kind=kind,  # type: ignore[arg-type]
        channels=3 if kind == "rgb8" else 1,
        dataset="phantom",
        fingerprint=fingerprint,
        extra={"split": "random-41"},
    )
    bundle.save(folder, create_model("rwkv_unet_t", num_classes=2).state_dict(), info)
    return folder


@pytest.fixture(scope="module")
def registry_of_two(migrated_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `mlflow.db`, where `net` has two versions (DSC 0.7 and 0.8), and `model1`, `model2`."""
    folder = tmp_path_factory.mktemp("registry")
    shutil.copy(migrated_database, folder / "mlflow.db")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    for number, dsc in enumerate((0.7, 0.8), start=1):
        run = synced_run(folder / f"run{number}", uri, **{"test/dsc_strict/mean": dsc})
        model = model_folder(folder / f"model{number}", number)
        assert register(run, model, "net", tracking_uri=uri) == number
    return folder


@pytest.fixture
def two_versions(registry_of_two: Path, tracking_uri: str, tmp_path: Path) -> str:
    shutil.copy(registry_of_two / "mlflow.db", tmp_path / "home" / "mlflow.db")
    return tracking_uri


def scored(uri: str, model: Path, dsc: float, **where: object) -> None:
    record_scores(model, {DSC: dsc}, Measured(**(OWN | {"trained_on": 0} | where)), tracking_uri=uri)  # type: ignore[arg-type]
