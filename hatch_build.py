"""Build hook: compiles the operators' CPU kernels into the package, wherever there is a C++ compiler.

Without one the package still installs, and the operators run in plain torch.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = [Path("kernels/biwkv/csrc") / name for name in ("wkv.cpp", "selective.cpp")]
LIBRARY = Path("kernels/biwkv/_biwkv_cpu.so")
FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared", "-pthread", "-Wno-psabi"]
# Compilers that do not know the newest processors make a library for the oldest alone.
ATTEMPTS: tuple[list[str], ...] = ([], ["-DBIWKV_BASELINE"])


class KernelBuildHook(BuildHookInterface):
    """Adds the compiled kernel to wheels; for editable installs it lies in the source tree."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        failure = compile_library([root / source for source in SOURCES], root / LIBRARY)
        if failure:
            (root / LIBRARY).unlink(missing_ok=True)  # of older sources
            self.app.display_warning(f"No compiled CPU kernel, the torch one will be used: {failure}")
            return
        build_data["artifacts"].append(f"/{LIBRARY}")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


def compile_library(sources: Sequence[Path], library: Path) -> str:
    """Compile `sources` into `library`, which is replaced in one step. Says what went wrong; empty if nothing."""
    compiler = _compiler()
    if not compiler:
        return "no C++ compiler found (looked for $CXX, c++, g++ and clang++)"
    failure = ""
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=".build-") as folder:
        built = Path(folder) / library.name
        for more in ATTEMPTS:
            command = [*compiler, *FLAGS, *more, *map(str, sources), "-o", str(built)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                built.replace(library)
                return ""
            failure = failure or f"{shlex.join(command)}\n{done.stderr}"
    return failure


def _compiler() -> list[str]:
    chosen = shlex.split(os.environ.get("CXX", ""))
    names = [chosen] if chosen else [["c++"], ["g++"], ["clang++"]]
    return next((name for name in names if shutil.which(name[0])), [])
