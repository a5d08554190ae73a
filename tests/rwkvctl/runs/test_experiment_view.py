"""What a person sees who opens the tracking UI, in a real browser where there is one."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from rwkv_unet import create_model
from rwkvctl.models import bundle
from rwkvctl.registry.promote import promote
from rwkvctl.registry.register import register
from rwkvctl.runs import experiment_view, folder
from rwkvctl.runs.journal import Journal, run_uid
from rwkvctl.runs.sync import sync_run

PATIENCE = 300.0
INFO = bundle.BundleInfo(
    model={"name": "rwkv_unet_t", "num_classes": 2},
    classes=["background", "polyp"],
    image_size=32,
    image_kind="rgb8",
    channels=3,
    dataset="clinicdb",
    fingerprint="f00d" * 16,
    extra={"split": "official"},
)


def run(place: Path, uri: str, dsc: float) -> Path:
    with Journal(place / "journal.jsonl") as journal:
        journal.params({"job": "finetune", "data.dataset": "clinicdb", "model.name": "rwkv_unet_xt"})
        journal.params({"seed": 7, "optimizer.lr": 1e-4})
        for step in (5, 10):
            journal.metrics({"train/loss": 1 - dsc, "train/lr": 1e-4, "val/dsc_strict/mean": dsc}, step)
        journal.metrics({experiment_view.PRIMARY: dsc}, 10)
        journal.event("end", status="FINISHED")
    sync_run(place, uri)
    return place


def test_an_experiment_is_dressed_once_and_what_people_have_set_stays(tracking_uri: str, tmp_path: Path):
    run(tmp_path / "run", tracking_uri, 0.5)
    client = MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name("rwkvctl")
    assert experiment is not None
    assert {key: experiment.tags.get(key) for key in experiment_view.TAGS} == experiment_view.TAGS
    client.set_experiment_tag(experiment.experiment_id, "mlflow.experiment.primaryMetric.name", "train/loss")
    experiment_view.dress(client, experiment.experiment_id)
    tags = client.get_experiment(experiment.experiment_id).tags
    assert tags["mlflow.experiment.primaryMetric.name"] == "train/loss"


def test_the_address_of_a_run(tracking_uri: str, tmp_path: Path):
    assert folder.mlflow_address(tmp_path) is None
    place = run(tmp_path / "run", tracking_uri, 0.5)
    run_id = folder.mlflow_run_id(place)
    assert (
        folder.mlflow_address(place)
        == f"http://127.0.0.1:5000/#/experiments/1/runs/{run_id}?workflowType=machine_learning (after: rwkvctl ui)"
    )
    assert (
        experiment_view.of_run("https://mlflow.lab/", "3", "ab")
        == "https://mlflow.lab/#/experiments/3/runs/ab?workflowType=machine_learning"
    )


@pytest.fixture
def ui(tracking_uri: str, tmp_path: Path) -> Iterator[str]:
    """The link that `rwkvctl ui` prints, over a database with two runs, the first a sweep, and a promoted model."""
    for number, dsc in enumerate((0.5, 0.8125)):
        run(tmp_path / f"run{number}", tracking_uri, dsc)
    with Journal(tmp_path / "trial7" / "journal.jsonl") as journal:
        journal.tags({"rwkvctl.parent": run_uid(tmp_path / "run0" / "journal.jsonl")})
        (tmp_path / "trial7" / "cases.csv").write_text("case,class,dsc_strict\npatient031,polyp,0.8125\n")
        journal.artifact(tmp_path / "trial7" / "cases.csv", "test")
    sync_run(tmp_path / "trial7", tracking_uri)
    bundle.save(tmp_path / "model", create_model("rwkv_unet_t", num_classes=2).state_dict(), INFO)
    register(tmp_path / "run1", tmp_path / "model", "polyp_net", tracking_uri=tracking_uri)
    promote("polyp_net", 1, "champion", tracking_uri=tracking_uri)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-P", "-m", "rwkvctl.cli.app", "ui", "--port", str(port)]
    environment = os.environ | {"MLFLOW_TRACKING_URI": tracking_uri}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    yield line.removeprefix("MLflow UI: ").split()[0]
    process.send_signal(signal.SIGTERM)
    process.wait()
    process.stdout.close()


def page_of(address: str, sought: str, tmp_path: Path) -> str:
    """What a browser has made of a page, once it shows a text; a busy server is late for the browser's virtual time."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here")
    words = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}"]
    words += ["--window-size=3600,2400", "--virtual-time-budget=60000", "--dump-dom", address]
    page = ""
    deadline = time.monotonic() + PATIENCE
    while sought not in page and time.monotonic() < deadline:
        done = subprocess.run([browser, *words], capture_output=True, text=True, check=False, timeout=PATIENCE)
        page = done.stdout
    return page


@pytest.mark.slow
def test_a_browser_shows_the_runs_with_the_columns_that_matter(ui: str, tmp_path: Path):
    page = page_of(ui, "run1", tmp_path)
    for seen in (
        "run0",
        "run1",
        "clinicdb",
        "rwkv_unet_xt",
        "data.dataset",
        "optimizer.lr",
        "best_val/dsc_strict/mean",
    ):
        assert seen in page, seen
    assert page.index("run1") < page.index("run0"), "the newest first"
    assert "trial7" not in page, "trials are folded up below their sweep"
    charts = page_of(f"{ui}&compareRunsMode=CHART", ">best_val/dsc_strict</div>", tmp_path)
    folded = charts.index(">best_val/dsc_strict</div>")
    for first in (">training</div>", "train/loss", "train/lr", "val/dsc_strict/mean"):
        assert charts.index(first) < folded, first
    assert "best_val/dsc_strict/mean" not in charts, "scores with one value are folded up"


@pytest.mark.slow
def test_a_browser_shows_the_cases_of_a_run_and_a_model_with_alias_and_card(ui: str, tracking_uri: str, tmp_path: Path):
    server, run_id = ui.partition("/#")[0], folder.mlflow_run_id(tmp_path / "trial7")
    cases = page_of(f"{server}/#/experiments/1/runs/{run_id}/artifacts/test/cases.csv", "patient031", tmp_path)
    assert "0.8125" in cases
    version = page_of(f"{server}/#/models/polyp_net/versions/1", "champion", tmp_path)
    for seen in ("Intended use", "It was not scored on test cases", "rwkvctl.details", "run1"):
        assert seen in version, seen
    [model] = MlflowClient(tracking_uri).search_logged_models(["1"])
    page = page_of(f"{server}/#/experiments/1/models/{model.model_id}", "polyp_net", tmp_path)
    for seen in ("best_val/dsc_strict/mean", "clinicdb/official/val", "model.num_classes"):
        assert seen in page, seen
