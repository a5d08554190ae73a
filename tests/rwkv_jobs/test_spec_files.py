"""A whole spec in a file, as a scheduler brings it to a cluster: it starts a run, and continues it when tried again."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rwkv_jobs.entry import resolve
from rwkvctl.base.errors import UserError

from .conftest import Jobs


@pytest.fixture
def spec(jobs: Jobs, tmp_path: Path) -> Path:
    """The file of a spec whose run is not there yet."""
    folder = jobs.new("finetune", "mine")
    path = tmp_path / "spec.yaml"
    (folder / "spec.yaml").rename(path)
    folder.rmdir()
    return path


def test_the_second_try_continues_the_run(spec: Path, jobs: Jobs):
    first, folder = resolve("finetune", str(spec), [], resume=True)
    assert folder == jobs.runs / "mine"
    (folder / "here").touch()
    again, same = resolve("finetune", str(spec), [], resume=True)
    assert (again, same) == (first, folder)
    assert (folder / "here").exists()
    with pytest.raises(UserError, match="run mine exists"):
        resolve("finetune", str(spec), [])


def test_another_spec_of_the_same_name_is_refused(spec: Path, jobs: Jobs):
    resolve("finetune", str(spec), [], resume=True)
    fields = yaml.safe_load(spec.read_text())
    fields["train"]["epochs"] = 7
    spec.write_text(yaml.safe_dump(fields))
    with pytest.raises(UserError, match="was started with another spec"):
        resolve("finetune", str(spec), [], resume=True)
