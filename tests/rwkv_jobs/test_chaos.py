"""Five faults of one seed: nothing is lost, nothing is doubled, nothing is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rwkvctl.launch.chaos.processes import marked


@pytest.mark.slow
def test_a_training_is_the_same_under_five_faults(tmp_path: Path):
    with tempfile.TemporaryDirectory(prefix="c", dir="/tmp") as temporary:  # short, for sockets
        environment = os.environ | {"TMPDIR": temporary, "UNDER_TEST": str(tmp_path)}
        command = [sys.executable, "-P", "-m", "rwkvctl.cli.app", "chaos", "--seed", "52", "--faults", "5", "--json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:] + done.stdout
        assert list(Path(temporary).iterdir()) == []
    found = json.loads(done.stdout)
    assert found["holds"]
    assert found["problems"] == []
    assert sum(kind["count"] for kind in found["kinds"].values()) == found["faults"] == 5
    assert all(kind["median_seconds"] is not None for kind in found["kinds"].values())
    assert found["compared"]["samples"] == 4 * found["compared"]["steps"] == 4 * found["steps"]
    assert marked("UNDER_TEST", str(tmp_path)) == []
