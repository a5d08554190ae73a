"""Slurm's commands as far as our script uses them, as programs that start real processes: one task for each node."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE = 1800.0
"""Seconds until a test gives up on an event: a machine that is busy with other things is slow, not broken."""

SBATCH = r"""
# Runs a script with what its #SBATCH lines ask for; again, if it has been requeued meanwhile.
import os, re, shutil, subprocess, sys
state, script = sys.argv[1], sys.argv[2]
text = open(script).read()
asked = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", text, re.MULTILINE))
number, hosts = os.environ["STAND_IN_ID"], os.environ["STAND_IN_HOSTS"].split(",")
spool = f"{state}/spool"
os.makedirs(spool, exist_ok=True)
copy = shutil.copy(script, f"{spool}/slurm_script")
environment = os.environ | {
    "SLURM_JOB_ID": number, "SLURM_JOB_NAME": asked["job-name"], "SLURM_JOB_NODELIST": ",".join(hosts),
    "SLURM_JOB_NUM_NODES": str(len(hosts)), "SLURM_CPUS_PER_TASK": asked["cpus-per-task"],
    "SLURM_SUBMIT_DIR": os.getcwd(),
}
assert int(asked["nodes"].partition("-")[0]) <= len(hosts)
first = os.environ["STAND_IN_NAMESPACES"].partition(",")[0]
where = ["ip", "netns", "exec", first] if first else []
starts = 0
while True:
    starts += 1
    with open(f"{state}/log", "ab") as log:
        job = subprocess.Popen([*where, "bash", copy], env=environment | {"SLURM_RESTART_COUNT": str(starts - 1)},
                               stdout=log, stderr=log)
    open(f"{state}/pid", "w").write(str(job.pid))
    code = job.wait()
    open(f"{state}/codes", "a").write(f"{code}\n")
    if not os.path.exists(f"{state}/requeue") or starts >= int(os.environ["STAND_IN_STARTS"]):
        break
    os.remove(f"{state}/requeue")
open(f"{state}/ended", "w").close()
"""
SRUN = r"""
# A task on every node, each in its own network namespace and with its own folder of temporary files, where it has any.
import os, subprocess, sys
state = sys.argv[1]
command = sys.argv[sys.argv.index("bash"):]
namespaces = [name for name in os.environ["STAND_IN_NAMESPACES"].split(",") if name]
tasks = []
for node in range(int(os.environ["SLURM_JOB_NUM_NODES"])):
    environment = os.environ | {"SLURM_NODEID": str(node), "SLURM_PROCID": str(node)}
    where = []
    if namespaces:
        private, mounted = f"{state}/node{node}", os.environ["TMPDIR"]
        os.makedirs(private, exist_ok=True)
        line = f"mount --make-rprivate / && mount --bind {private} {mounted} && exec \"$@\""
        where = ["ip", "netns", "exec", namespaces[node], "sh", "-c", line, "sh"]
    tasks.append(subprocess.Popen([*where, *command], env=environment))
codes = [task.wait() for task in tasks]
open(f"{state}/tasks", "a").write(f"{codes}\n")
sys.exit(max(code if code >= 0 else 128 - code for code in codes))
"""
SCONTROL = r"""
import os, sys
state, words = sys.argv[1], sys.argv[2:]
if words[:2] == ["show", "hostnames"]:
    print("\n".join(words[2].split(",")))
elif words[:2] == ["show", "job"]:
    print(f"JobId={words[2]} JobName=x\n   JobState={open(f'{state}/job-state').read()} Reason=None")
elif words[0] == "requeue":
    open(f"{state}/requeue", "w").write(words[1])
else:
    sys.exit(f"unknown: {words}")
"""


class Slurm:
    """A cluster of nodes by their addresses; with the names of their network namespaces, if they have any."""

    def __init__(self, folder: Path, hosts: list[str], namespaces: list[str] | None = None, number: int = 4321):
        self.folder, self.hosts, self.namespaces, self.number = folder, hosts, namespaces or [], number
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        for name, code in {"sbatch": SBATCH, "srun": SRUN, "scontrol": SCONTROL}.items():
            (folder / f"{name}.py").write_text(code)
            program = self.bin / name
            program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{folder}/{name}.py" "{folder}" "$@"\n')
            program.chmod(0o755)
        self.set_state("RUNNING")
        self.process: subprocess.Popen[bytes] | None = None

    def submit(self, script: Path, *, starts: int = 5, **environment: str) -> None:
        """Start it, as sbatch does after it has answered."""
        own = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "STAND_IN_ID": str(self.number),
            "STAND_IN_HOSTS": ",".join(self.hosts),
            "STAND_IN_NAMESPACES": ",".join(self.namespaces),
            "STAND_IN_STARTS": str(starts),
        }
        self.process = subprocess.Popen(
            [self.bin / "sbatch", script], env=os.environ | own | environment, start_new_session=True
        )

    def set_state(self, state: str) -> None:
        (self.folder / "job-state").write_text(state)

    def signal(self) -> None:
        """What `--signal=B:TERM@120` sends, to the batch script alone."""
        os.kill(int((self.folder / "pid").read_text()), signal.SIGTERM)

    def wait(self, seconds: float = PATIENCE) -> list[int]:
        """The exit codes of the batch script, one for each time that it was started."""
        wait_for(lambda: (self.folder / "ended").exists(), "end of the job", seconds, self.log)
        assert self.process is not None
        self.process.wait()
        return [int(line) for line in (self.folder / "codes").read_text().split()]

    def tasks(self) -> list[list[int]]:
        """The exit codes of the tasks of every start."""
        return [json.loads(line) for line in (self.folder / "tasks").read_text().splitlines()]

    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text() if path.exists() else ""

    def end(self) -> None:
        """Kill what is left."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def wait_for(condition: Callable[[], Any], what: str, seconds: float = PATIENCE, said: Callable[[], str] = str) -> Any:
    """The condition's value as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"no {what} after {seconds} s\n{said()[-5000:]}"
        time.sleep(0.05)
    return value
