"""Everything that a job needs, tried on this machine and on every node of the cluster that it would run on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from typing import Any
from urllib.parse import urlsplit

from rwkvctl.base.processes import GRACE, signal_group
from rwkvctl.config.settings import Settings
from rwkvctl.launch.doctor import checks, facts, tracking
from rwkvctl.launch.doctor.checks import Check, Machines, several
from rwkvctl.launch.doctor.cluster import Survey, last_line, parse

HERE = "this machine"
REACHED_WITHIN = 5.0
"""Seconds for a connection to the head."""
SKEW = ((60.0, "problem"), (2.0, "warning"))


def examine(machine: Settings, seconds: float) -> list[Check]:
    """All checks, on the cluster of the settings too; each node is waited for `seconds` at a question."""
    places = {name: getattr(machine, name) for name in ("storage", "data_root", "cache_dir")}
    head = None if machine.address is None else host_of(machine.address)
    here = facts.facts(places, head)
    file = f".rwkvctl-doctor-{uuid.uuid4().hex[:8]}"
    unwritten = facts.attempt(machine.storage, "write", [file]).get(file)
    try:
        found = None if machine.address is None else ask(machine, places, file, seconds, first=unwritten is None)
        unread = None if unwritten else facts.attempt(machine.storage, "read", [file]).get(file)
    finally:
        facts.attempt(machine.storage, "remove", [file])
    nodes = {} if found is None else named(found.get("nodes", []))
    told = {name: node["facts"] for name, node in nodes.items() if node["facts"]}
    machines: Machines = told or {HERE: here}
    return [
        cluster(machine.address, found, nodes),
        checks.versions(machines),
        storage(machine.storage, nodes, unwritten or unread),
        tracked(machine, found),
        checks.data(machines, machine.data_root),
        checks.gpus(machines, {name: node["gpus"] for name, node in nodes.items()}),
        checks.shared_memory(machines),
        checks.open_files(machines),
        checks.free_disk(machines),
        clocks(nodes),
        checks.network(machines, len(nodes) > 1),
        token(machine.address, here, told),
    ]


# The cluster ----------------------------------------------------------------------------------------------------------


def ask(machine: Settings, places: dict[str, str], file: str, seconds: float, *, first: bool) -> Survey:
    """What the nodes say; `error` where the cluster cannot be asked."""
    address = machine.address or ""
    if problem := unreachable(address):
        return {"error": problem, "do": "start it, or: rwkvctl config set address HOST:PORT"}
    job_seconds = 5 * seconds + 30
    request = {
        "address": address,
        "places": places,
        "tracking_uri": machine.tracking_uri,
        "name": file,
        "first": file if first else None,
        "seconds": seconds,
        "job_seconds": job_seconds,
    }
    command = [sys.executable, "-P", "-m", "rwkvctl.launch.doctor.cluster", json.dumps(request)]
    limit = job_seconds + (30 if address.startswith("http") else 0)
    quiet = os.environ | {"RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_USAGE_STATS_ENABLED": "0"}
    with tracked_group(subprocess.PIPE, command, quiet) as child:
        try:
            out, err = child.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            return {"error": f"does not answer within {limit:g} s", "do": not_a_node(address)}
    found = parse(out)
    if found is None:
        return {"error": f"cannot be joined from here ({last_line(err)})", "do": not_a_node(address)}
    return found


@contextlib.contextmanager
def tracked_group(pipe: int, command: list[str], environment: dict[str, str]) -> Any:
    """A child with all that it starts, none of which is left behind."""
    child = subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, errors="replace", env=environment, start_new_session=True
    )
    try:
        yield child
    finally:
        signal_group(child.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE)
        signal_group(child.pid, signal.SIGKILL)
        child.communicate()


def not_a_node(address: str) -> str:
    if address.startswith("http"):
        return "look into the log of its head"
    return f"run this on a node of the cluster, or give its job server: --address http://{host_of(address)}:8265"


def host_of(address: str) -> str:
    return urlsplit(address if "://" in address else f"ray://{address}").hostname or address


def unreachable(address: str) -> str | None:
    """Why nothing answers at an address, found out by a plain connection; None if something does."""
    if address == "auto":
        return None
    place = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        socket.create_connection((place.hostname or "", place.port or 80), REACHED_WITHIN).close()
    except (OSError, ValueError) as error:
        return f"does not answer ({' '.join(str(getattr(error, 'strerror', None) or error).split())})"
    return None


def named(nodes: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Nodes by their host's name, and more where several have one."""
    hosts = [node["host"] for node in nodes]
    alike = {(node["host"], node["address"]) for node in nodes}
    named = {}
    for node in nodes:
        name = node["host"]
        if hosts.count(name) > 1:
            name += f" ({node['address']})" if len(alike) == len(nodes) else f" (node {node['id'][:8]})"
        named[name] = node
    return named


def cluster(address: str | None, found: Survey | None, nodes: dict[str, Any]) -> Check:
    check = Check("cluster")
    if address is None or found is None:
        check.so = f"none is set: jobs run on this machine ({len(os.sched_getaffinity(0))} CPUs)"
        return check
    if "error" in found:
        do = found.get("do") or remedy(found)
        check.add("problem", f"{address}: {found['error']}", do)
        return check
    cpus, gpus = (sum(node[kind] for node in nodes.values()) for kind in ("cpus", "gpus"))
    listed = several(f"{name} {node['cpus']:g} CPUs {node['gpus']:g} GPUs" for name, node in nodes.items())
    check.so = f"{address}: {len(nodes)} node{'s' * (len(nodes) != 1)}, {cpus:g} CPUs, {gpus:g} GPUs ({listed})"
    if silent := [name for name, node in nodes.items() if node["facts"] is None]:
        reason = nodes[silent[0]]["error"]
        check.add(
            "problem", f"{several(silent)} {reason}", "look into /tmp/ray/session_latest/logs there, or restart Ray"
        )
    if found.get("gone"):
        check.add("warning", f"{several(found['gone'])} left the cluster", "start Ray there again if it is needed")
    return check


def remedy(found: Survey) -> str:
    error = found["error"].lower()
    if "auth" in error or "token" in error or "401" in error or "403" in error:
        return "set RAY_AUTH_TOKEN_PATH to the token of this cluster"
    if "version mismatch" in error:
        return "install the cluster's versions of Python and Ray here"
    if found.get("on_head"):
        return "install what is missing in the environment that Ray runs in"
    return "look into the log of its head"


# Storage, tracking, clocks, token ------------------------------------------------------------------------------------


def storage(path: str, nodes: dict[str, Any], here: str | None) -> Check:
    """A file that one machine writes is read by every other."""
    check = Check("storage")
    check.so = f"{path}: can be written" + (", and every node reads what the others write" if len(nodes) > 1 else "")
    if here:
        check.add("problem", f"{path} cannot be written here ({here})", "rwkvctl config set storage FOLDER")
    if unwritten := [name for name, node in nodes.items() if node["unwritten"]]:
        what = f"{path} cannot be written on {several(unwritten)} ({nodes[unwritten[0]]['unwritten']})"
        check.add("problem", what, "mount one writable folder there on every node")
    by_id = {node["id"]: name for name, node in nodes.items()}
    unseen = {name: [by_id.get(writer, HERE) for writer in node["unread"]] for name, node in nodes.items()}
    if apart := [name for name, writers in unseen.items() if writers]:
        what = f"{path} on {several(apart)} does not show what {several(unseen[apart[0]])} writes"
        check.add("problem", what, "it must be one shared folder: mount it at the same path on every node")
    return check


def tracked(machine: Settings, found: Survey | None) -> Check:
    check = Check("tracking")
    looked = tracking.look(machine.tracking_uri)
    check.add(looked["state"], looked["what"], looked["do"])  # type: ignore[arg-type]
    on_head = (found or {}).get("tracking")
    if on_head and on_head["state"] != "ok":
        check.add(on_head["state"], f"seen from the head: {on_head['what']}", on_head["do"])
    elif on_head and machine.tracking_uri.startswith("sqlite:"):
        what = "a job on the cluster keeps its database on the head's own disk"
        check.add("warning", what, "set tracking_uri to a server")
    return check


def clocks(nodes: dict[str, Any]) -> Check:
    """Of the nodes beside the driver's."""
    check = Check("clocks")
    if not nodes:
        check.so = "one machine"
        return check
    skews = {name: skew(node["clock"]) for name, node in nodes.items() if node["clock"]}
    check.so = f"within {max((most for _, most in skews.values()), default=0):.1f} s of each other"
    for limit, state in SKEW:
        if wrong := [name for name, (least, _) in skews.items() if least > limit]:
            what = f"the clock of {several(wrong)} is {skews[wrong[0]][0]:.0f} s off"
            check.add(state, what, "run chrony or systemd-timesyncd there")  # type: ignore[arg-type]
            break
    return check


def skew(offset: tuple[float, float]) -> tuple[float, float]:
    """How far a clock is off at least and at most, from what it showed between a question and its answer."""
    low, high = sorted(offset)
    return (0.0 if low <= 0 <= high else min(abs(low), abs(high))), max(abs(low), abs(high))


def token(address: str | None, here: facts.Facts, told: Machines) -> Check:
    """Whether the cluster asks for Ray's token, and who has it."""
    check = Check("token")
    own = here["auth"]
    holder = "RAY_AUTH_TOKEN" if own["variable"] else own["path"] if own["there"] else "no token"
    check.so = f"RAY_AUTH_MODE={own['mode'] or 'unset'}, {holder}"
    if own["there"] and own["open_to_others"]:
        check.add("warning", f"{own['path']} can be read by others", f"chmod 600 {own['path']}")
    if own["mode"] == "token" and not own["variable"] and not own["readable"]:
        check.add("problem", f"RAY_AUTH_MODE=token and no token at {own['path']}", "copy the cluster's token there")
    if address is None:
        return check
    modes = {node["auth"]["mode"] for node in told.values()}
    if modes == {"disabled"} and host_of(address) not in ("127.0.0.1", "localhost", "::1"):
        what = "the cluster asks for no token: whoever reaches it runs code on it"
        check.add("warning", what, "RAY_AUTH_MODE=token and one token file on every node before `ray start`")
    lacking = [name for name, node in told.items() if not (node["auth"]["variable"] or node["auth"]["readable"])]
    if "token" in modes and lacking:
        check.add("warning", f"no token on {several(lacking)}", "copy the head's token file to every node, mode 600")
    return check
