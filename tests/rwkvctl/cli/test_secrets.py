"""A password in a URI is refused in one line that does not show it, with nothing written, wherever it is given."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rwkvctl.base import processes
from rwkvctl.cli import assemble
from rwkvctl.config.specs.jobs import TuneSpec
from rwkvctl.runs import folder as run_folder

SECRET = "hunter2"
SERVER = f"https://ann:{SECRET}@mlflow.lab"
DATABASE = f"postgresql://ann:{SECRET}@db.lab/x"
BUCKET = f"s3://ann:{SECRET}@bucket/x"
REFUSED = [
    (f"config set tracking_uri {SERVER}", "tracking_uri: must "),
    (f"config set data_root {BUCKET}", "data_root: must "),
    (f"config set storage {SERVER}", "storage: must "),
    (f"config set cache_dir {BUCKET}", "cache_dir: must "),
    (f"config set address {SERVER}:8265", "address: must "),
    (f"finetune binary --data {BUCKET}", "data.path: must "),
    (f"finetune binary --data {{data}} --set tracking.uri={SERVER}", "tracking.uri: must "),
    (f"finetune binary --data {{data}} --set tracking.uri={DATABASE}", "tracking.uri: must "),
    (f"finetune binary --data {{data}} --set tracking.uri=http://lab?token={SECRET}", "tracking.uri: must "),
    (f"finetune binary --data {{data}} --set tracking={SERVER}", "tracking: must be a mapping"),
    (f"finetune binary --data {{data}} --set storage={BUCKET}", "storage: must "),
    (f"finetune binary --data {{data}} --encoder {BUCKET}", "model.encoder_weights: must "),
    (f"finetune binary --data {{data}} --address {SERVER}:8265", "cluster.address: must "),
    (f"finetune binary --data {{data}} --name {SERVER}", "name"),
    (f"finetune {SERVER}/recipe.yaml", "recipe https://ann:***@mlflow.lab"),
    (f"finetune binary --data {{data}} --resume {SERVER}", "run 'https://ann:***@mlflow.lab'"),
    (f"tune --space ccm_hidden --data {{data}} --study {DATABASE}", "study_storage: must "),
    (f"tune --space {DATABASE}", "space 'postgresql://ann:***@db.lab/x'"),
    (f"evaluate {SERVER}", "run 'https://ann:***@mlflow.lab'"),
    (f"evaluate x --data {BUCKET}", "data: must "),
    (f"predict {BUCKET} a.png --out {{home}}/masks", "run 's3://ann:***@bucket/x'"),
    (f"model export {BUCKET} --out {{home}}/a.onnx", "run 's3://ann:***@bucket/x'"),
    (f"sync {SERVER}", "run 'https://ann:***@mlflow.lab'"),
    (f"data verify {BUCKET}", "credentials"),
    (f"data prepare folder --source {BUCKET} --out {{home}}/x", "--source s3://ann:***@bucket/x: must "),
    (f"study show {DATABASE}", "study 'postgresql://ann:***@db.lab/x'"),
]  # fmt: skip


def refused(done, said: str, code: int = 2) -> None:
    assert done.code == code, done.err
    [error] = done.err.splitlines()
    assert said in error
    assert "***" in error or "s3://..." in error
    assert SECRET not in done.out + done.err


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize(("line", "said"), REFUSED, ids=[line for line, _ in REFUSED])
def test_on_the_command_line(rwkvctl, binary, home: Path, line: str, said: str):
    of_a_run = said.startswith("run ") and ("--resume" in line or line.startswith("sync "))
    refused(rwkvctl(line.format(home=home, data=binary.root)), said, 4 if of_a_run else 2)
    assert files_of(home) == []


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MLFLOW_TRACKING_URI", f"https://mlflow.lab?token={SECRET}"),
        ("MLFLOW_TRACKING_URI", f"mysql+pymysql://ann:{SECRET}@db.lab/x"),
        ("RAY_ADDRESS", f"http://head:8265?token={SECRET}"),
        ("RWKVCTL_DATA_ROOT", BUCKET),
        ("RWKVCTL_STORAGE", BUCKET),
        ("RWKVCTL_CACHE", BUCKET),
        ("RWKVCTL_CACHE_GB", BUCKET),
    ],
)
def test_in_the_environment(rwkvctl, binary, home: Path, variable: str, value: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(variable, value)
    for line in ("config show", "runs", f"finetune binary --data {binary.root}"):
        refused(rwkvctl(line), variable)
    assert files_of(home) == []


@pytest.mark.parametrize("line", ["config show", "runs", "finetune binary --data {data}"])
def test_in_the_settings_file(rwkvctl, binary, home: Path, line: str):
    home.mkdir()
    content = yaml.safe_dump({"tracking_uri": SERVER}).encode()
    (home / "config.yaml").write_bytes(content)
    refused(rwkvctl(line.format(data=binary.root)), f"{home}/config.yaml: tracking_uri: must ")
    assert files_of(home) == [home / "config.yaml"]


def test_in_a_recipe(rwkvctl, binary, home: Path, tmp_path: Path):
    fields = {"job": "finetune", "data": {"path": str(binary.root)}, "tracking": {"uri": DATABASE}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(fields))
    refused(rwkvctl(f"finetune {tmp_path}/mine.yaml"), "tracking.uri: must ")
    assert files_of(home) == []


def test_when_a_sweep_is_continued(rwkvctl, binary, home: Path):
    spec = assemble.tune_spec("ccm_hidden", None, str(binary.root), {}, [], None, 1, None, None, "sweep")
    assert isinstance(spec, TuneSpec)
    folder = run_folder.create(spec, str(home / "runs"))
    before = (folder / "spec.yaml").read_bytes()
    refused(rwkvctl(f"tune --resume sweep --study {DATABASE}"), "study_storage: must ")
    assert (folder / "spec.yaml").read_bytes() == before
    refused(rwkvctl(f"tune --resume sweep --set tracking.uri={DATABASE}"), "tracking.uri: must ")
    assert SECRET.encode() not in b"".join(path.read_bytes() for path in files_of(home))


@pytest.mark.parametrize(
    ("uri", "shown", "variable"),
    [(DATABASE, "postgresql://ann@db.lab/x", "PGPASSWORD"), (SERVER, "https://mlflow.lab", "MLFLOW_TRACKING_PASSWORD")],
)
def test_a_variable_with_a_password_reaches_no_argument_list_or_screen(
    rwkvctl, uri: str, shown: str, variable: str, monkeypatch: pytest.MonkeyPatch
):
    """What libpq and MLflow's client can read from a variable of its own is moved there, where children find it."""
    for name in ("PGPASSWORD", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    listed: list[list[str]] = []
    inherited: list[str] = []

    class Started(subprocess.Popen):  # type: ignore[type-arg]
        """`printenv` in place of the UI, with the arguments and the environment that the UI would have."""

        def __init__(self, command: list[str], **options: object):
            if command[0] != sys.executable:  # a library's own question about this machine
                super().__init__(command, **options)  # type: ignore[call-overload]
                return
            listed.append(command)
            super().__init__(["printenv", variable], stdout=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]
            inherited.append(self.communicate()[0])

    monkeypatch.setattr(processes.subprocess, "Popen", Started)
    done = rwkvctl("ui --port 50999")
    assert SECRET not in done.out + done.err
    assert SECRET not in str(listed)
    shown_in = str(listed) if listed else done.out
    assert shown in shown_in
    assert set(inherited) == ({f"{SECRET}\n"} if listed else set())
