"""What one machine says of itself.

These functions are sent to the nodes of a cluster as they are, since a node may have another version of rwkvctl, or
none: they need the standard library alone, import nothing heavy, and answer with plain values.
"""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rwkvctl.base.lineage import code_identity, package_folders

Facts = dict[str, Any]

LIBRARIES = ("ray", "torch", "rwkvctl")
MANIFEST = "manifest.json"
"""In every prepared data set."""


def facts(places: dict[str, str], head: str | None = None) -> Facts:
    """Everything about this machine that `checks` looks at.

    Args:
        places: where storage, data_root and cache_dir are.
        head: address of the cluster's head, to find the interface that reaches it.
    """
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "versions": {name: version_of(name) for name in LIBRARIES},
        "installed": bool(package_folders("rwkvctl")),
        "code": code_identity(),
        "cpus": len(os.sched_getaffinity(0)),
        "gpus": gpus(),
        "torch_cuda": torch_cuda(),
        "nccl": nccl(),
        "shm": space("/dev/shm"),
        "files": list(resource.getrlimit(resource.RLIMIT_NOFILE)),
        "disks": {name: space(path) for name, path in disks(places).items()},
        "data": data_sets(places["data_root"]),
        "network": network(head),
        "auth": auth(),
    }


def version_of(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def space(path: str) -> dict[str, Any] | None:
    """Size and free space, in bytes, of the disk that a path is or will be on; None where there is none."""
    if "://" in path:
        return None
    place = Path(path)
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        disk = os.statvfs(place)
    except OSError:
        return None
    return {
        "path": path,
        "exists": Path(path).exists(),
        "size": disk.f_frsize * disk.f_blocks,
        "free": disk.f_frsize * disk.f_bavail,
        "no_inodes": disk.f_files > 0 and disk.f_favail == 0,
    }


def disks(places: dict[str, str]) -> dict[str, str]:
    return {"storage": places["storage"], "cache_dir": places["cache_dir"], "temp": tempfile.gettempdir()}


# GPUs ----------------------------------------------------------------------------------------------------------------


def gpus() -> dict[str, Any]:
    """What nvidia-smi lists: names, driver, and the newest CUDA that the driver runs. Empty without GPUs; `error` where
    it fails."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    try:
        done = subprocess.run([tool], capture_output=True, text=True, timeout=20, check=False)
        query = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
        listed = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": f"nvidia-smi: {type(error).__name__}"}
    if done.returncode or listed.returncode:
        return {"error": " ".join((done.stdout + done.stderr).split())[:160]}
    rows = [line.split(", ") for line in listed.stdout.splitlines() if line.strip()]
    cuda = re.search(r"CUDA Version: (\d+\.\d+)", done.stdout)
    return {"names": [row[0] for row in rows], "driver": rows[0][-1] if rows else None, "cuda": cuda and cuda[1]}


def torch_cuda() -> str | None:
    """The CUDA that torch was built for, read without importing it; None for a build without."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = Path(spec.origin).with_name("version.py").read_text()
    except OSError:
        return None
    found = re.search(r"^cuda\b.*=\s*'([\d.]+)'", text, re.MULTILINE)
    return found and found[1]


def nccl() -> str | None:
    """The version of NCCL that is installed with torch."""
    for found in metadata.distributions(name="nvidia-nccl-cu13"), metadata.distributions(name="nvidia-nccl-cu12"):
        for one in found:
            return one.version
    return None


# Network and rights --------------------------------------------------------------------------------------------------


def network(head: str | None) -> dict[str, Any]:
    """What this machine's name resolves to, and the interface that reaches the head."""
    try:
        resolved = socket.gethostbyname(socket.gethostname())
    except OSError:
        resolved = None
    own = address_towards(head or "8.8.8.8")
    return {
        "resolves_to": resolved,
        "address": own,
        "interface": own and interface_of(own),
        "interfaces": [name for _, name in socket.if_nameindex()],
        "gloo": os.environ.get("GLOO_SOCKET_IFNAME"),
        "nccl": os.environ.get("NCCL_SOCKET_IFNAME"),
    }


def address_towards(host: str) -> str | None:
    """The address of ours from which packets to a host leave; nothing is sent."""
    try:
        family, *_, target = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)
            return str(probe.getsockname()[0])
    except OSError:
        return None


def interface_of(address: str) -> str | None:
    """The network interface that has an address."""
    try:
        import psutil
    except ImportError:
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == address for entry in addresses):
            return str(name)
    return None


def auth() -> dict[str, Any]:
    """How Ray's token is set up here; never the token itself."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    found = path.is_file()
    return {
        "mode": os.environ.get("RAY_AUTH_MODE"),
        "variable": bool(os.environ.get("RAY_AUTH_TOKEN")),
        "path": str(path),
        "there": found,
        "readable": found and os.access(path, os.R_OK),
        "open_to_others": found and bool(path.stat().st_mode & 0o077),
    }


# Folders and buckets ------------------------------------------------------------------------------------------------


def data_sets(root: str) -> dict[str, Any]:
    """Names of the prepared data sets below a folder or URL, or why it cannot be read."""
    try:
        return {"names": sorted(name for name in names_in(root) if can_read(root, name))}
    except Exception as error:
        return {"error": one_line(error), "missing": isinstance(error, FileNotFoundError)}


def names_in(root: str) -> list[str]:
    if "://" not in root:
        return [path.name for path in Path(root).iterdir() if path.is_dir()]
    from rwkvctl.base import object_store

    found = object_store.plain_errors(root, lambda store: store.ls(object_store.key_of(root), detail=False))
    return [str(key).rstrip("/").rpartition("/")[2] for key in found]


def can_read(root: str, name: str) -> bool:
    """Whether a data set lies there; raises where it does and cannot be read."""
    if "://" in root:
        return True
    path = Path(root) / name / MANIFEST
    if not path.exists():
        return False
    with path.open("rb") as file:
        file.read(1)
    return True


def exchange(storage: str, action: str, name: str) -> str:
    """Write, read or remove a small file, which holds its own name, in a folder or bucket: the one way in which storage
    is tried. Returns what was read; raises whatever the storage does."""
    if "://" in storage:
        from rwkvctl.base import object_store

        uri = f"{storage.rstrip('/')}/{name}"
        key = object_store.key_of(uri)
        actions: dict[str, Any] = {
            "write": lambda store: store.pipe_file(key, name.encode()),
            "read": lambda store: store.cat_file(key).decode(),
            "remove": lambda store: store.rm_file(key),
        }
        return str(object_store.plain_errors(uri, actions[action]) or "")
    path = Path(storage) / name
    if action == "read":
        return path.read_text()
    if action == "remove":
        path.unlink(missing_ok=True)
        return ""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        file.write(name)
        file.flush()
        os.fsync(file.fileno())
    return ""


def attempt(storage: str, action: str, names: list[str]) -> dict[str, str]:
    """`exchange` for several files: what went wrong with each, nothing where it went well. A file that is read is
    looked for again for some seconds: network file systems show new ones late."""
    problems = {}
    for name in names:
        for pause in (0.2, 0.5, 1.0, 2.0, 0.0) if action == "read" else (0.0,):
            try:
                found = exchange(storage, action, name)
                problem = "" if found in ("", name) and (found or action != "read") else "holds something else"
            except Exception as error:
                problem = one_line(error)
            if not problem:
                break
            time.sleep(pause)
        if problem:
            problems[name] = problem
    return problems


def clock() -> float:
    """Seconds since 1970 on this machine."""
    return time.time()


def one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = os.fsdecode(error.filename) if error.filename is not None else None
        return f"{where}: {error.strerror}" if where else error.strerror
    return " ".join(str(error).split())[:200] or type(error).__name__
