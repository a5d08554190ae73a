"""What is wrong with machines that have told about themselves, and what to do about it: one line a subject."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from rwkvctl.launch.doctor.facts import Facts

State = Literal["ok", "warning", "problem"]
STATES: tuple[State, ...] = ("ok", "warning", "problem")
Machines = dict[str, Facts]
"""By the name that is printed; the first is the one that others are compared with."""

GIB = 2**30
ENOUGH_FILES = {False: 1024, True: 4096}
"""Open files that a process should be allowed, alone and on a cluster."""


@dataclass
class Check:
    """One subject: what is so where all is well, or what was found."""

    name: str
    so: str = ""
    found: list[tuple[State, str, str]] = field(default_factory=list)
    """State, what is wrong, what to do."""

    def add(self, state: State, what: str, do: str) -> None:
        self.found.append((state, what, do))

    @property
    def state(self) -> State:
        return max((state for state, *_ in self.found), key=STATES.index, default="ok")

    @property
    def line(self) -> str:
        """What is wrong, the worst first, and what to do."""
        if self.state == "ok":
            return "; ".join([self.so] * bool(self.so) + [what for _, what, _ in self.found])
        wrong = sorted((one for one in self.found if one[0] != "ok"), key=lambda one: -STATES.index(one[0]))
        return "; ".join(f"{what}: {do}" if do else what for _, what, do in wrong)

    def as_fields(self) -> dict[str, Any]:
        return {"check": self.name, "state": self.state, "line": self.line}


def several(names: Iterable[str]) -> str:
    """Three names and how many more."""
    listed = list(names)
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return ", ".join(listed[:3]) + more


def where(machines: Machines, wrong: Callable[[Facts], Any]) -> str:
    """The machines for which something is so; empty for none."""
    return several(name for name, facts in machines.items() if wrong(facts))


# What every machine is ------------------------------------------------------------------------------------------------


def versions(machines: Machines) -> Check:
    """Python, libraries and our own code: the same everywhere."""
    first, about = next(iter(machines.items()))
    check = Check("versions")
    libraries = ", ".join(f"{name} {version or 'missing'}" for name, version in about["versions"].items())
    check.so = f"python {about['python']}, {libraries} (code {about['code'][:12]})"
    check.so += ", the same everywhere" if len(machines) > 1 else ""
    if absent := where(machines, lambda facts: not facts["installed"]):
        python = next(facts["executable"] for facts in machines.values() if not facts["installed"])
        do = "install it there, or put its environment first on the PATH of `ray start`"
        check.add("problem", f"rwkvctl is not installed on {absent} ({python})", do)
    there = {name: facts for name, facts in machines.items() if facts["installed"]}
    if differ := where(there, lambda facts: facts["code"] != about["code"]):
        other = next(facts["code"] for facts in there.values() if facts["code"] != about["code"])
        what = f"the code of rwkvctl on {differ} ({other[:12]}) is not that on {first} ({about['code'][:12]})"
        check.add("problem", what, "install the same version on every node")
    for library in ("torch", "ray"):
        if differ := where(there, lambda facts, x=library: facts["versions"][x] != about["versions"][x]):  # type: ignore[misc]
            counts = Counter(facts["versions"][library] or "missing" for facts in machines.values())
            what = f"{library} on {differ} is not that on {first} ({' and '.join(sorted(counts))})"
            check.add("problem", what, "install the same version on every node")
    if differ := where(machines, lambda facts: facts["python"] != about["python"]):
        minor = {facts["python"].rpartition(".")[0] for facts in machines.values()}
        kinds = " and ".join(sorted({facts["python"] for facts in machines.values()}))
        what = f"python on {differ} is not that on {first} ({kinds})"
        check.add("problem" if len(minor) > 1 else "warning", what, "use the same everywhere")
    return check


def data(machines: Machines, root: str) -> Check:
    """The data root, on every machine that will read it."""
    check = Check("data")
    found = {name: facts["data"] for name, facts in machines.items()}
    everything = sorted({one for told in found.values() for one in told.get("names", ())})
    check.so = f"{root}: {several(everything)}" + (" on every node" if len(machines) > 1 else "")
    if not everything and all(told.get("missing") or "names" in told for told in found.values()):
        do = "rwkvctl data prepare, or: rwkvctl config set data_root FOLDER"
        check.add("warning", f"no prepared data set in {root}", do)
        return check
    for name, told in found.items():
        if "error" in told:
            check.add("problem", f"{root} cannot be read on {name} ({told['error']})", "mount it on every node")
            break
    for one in everything:
        lacks = where(machines, lambda facts, x=one: x not in facts["data"].get("names", [x]))  # type: ignore[misc]
        if lacks:
            check.add("problem", f"{root}/{one} is not on {lacks}", "mount one folder on every node")
            break
    return check


def gpus(machines: Machines, by_ray: dict[str, float]) -> Check:
    """GPUs, their driver, the CUDA of torch and NCCL."""
    check = Check("gpus")
    counts = {name: len(facts["gpus"].get("names", ())) for name, facts in machines.items()}
    kinds = Counter(kind for facts in machines.values() for kind in facts["gpus"].get("names", ()))
    check.so = ", ".join(f"{number} x {kind}" for kind, number in kinds.items())
    if broken := where(machines, lambda facts: facts["gpus"].get("error")):
        error = next(facts["gpus"]["error"] for facts in machines.values() if facts["gpus"].get("error"))
        check.add("problem", f"nvidia-smi fails on {broken} ({error})", "mend the driver; a restart often does")
    if not kinds:
        check.so = "none" if len(machines) > 1 else "none on this machine"
        check.so += ": jobs run on CPUs"
        return check
    for name, facts in machines.items():
        driver, cuda, built = facts["gpus"].get("driver"), facts["gpus"].get("cuda"), facts["torch_cuda"]
        if not counts[name]:
            continue
        if built is None:
            check.add("problem", f"torch on {name} has no CUDA", "install the build of torch for CUDA")
        elif cuda and int(cuda.split(".")[0]) < int(built.split(".")[0]):
            what = f"driver {driver} on {name} runs CUDA {cuda}, torch needs {built}"
            check.add("problem", what, f"update the driver, or install torch for CUDA {cuda.split('.')[0]}")
        elif facts["nccl"] is None and sum(counts.values()) > 1:
            check.add("warning", f"no NCCL package beside torch on {name}", "several GPUs need it")
        if name in by_ray and by_ray[name] < counts[name]:
            what = f"{name} has {counts[name]} GPUs, Ray knows {by_ray[name]:g}"
            check.add("warning", what, "start Ray there without CUDA_VISIBLE_DEVICES, or with --num-gpus")
    if len(set(counts.values())) > 1:
        listed = several(f"{name} {number}" for name, number in counts.items())
        check.add(
            "warning", f"nodes have different numbers of GPUs ({listed})", "give --gpus-per-node, or leave one out"
        )
    nccl = {facts["nccl"] for facts in machines.values()} - {None}
    if len(nccl) > 1:
        check.add("problem", f"NCCL differs between nodes ({' and '.join(sorted(nccl))})", "install the same torch")
    first = next(facts for name, facts in machines.items() if counts[name])
    check.so += f", driver {first['gpus'].get('driver')} (CUDA {first['gpus'].get('cuda')}), "
    check.so += f"torch for CUDA {first['torch_cuda']}, NCCL {first['nccl'] or 'none'}"
    return check


def shared_memory(machines: Machines) -> Check:
    """/dev/shm, through which loader processes hand over their samples."""
    check = Check("shared memory")
    sizes = {name: facts["shm"]["size"] if facts["shm"] else 0 for name, facts in machines.items()}
    check.so = f"/dev/shm has {gib(min(sizes.values()))}" + (" or more" if len(sizes) > 1 else "")
    for limit, state in ((GIB // 8, "problem"), (GIB, "warning")):
        if small := several(name for name, size in sizes.items() if size < limit):
            what = f"/dev/shm on {small} has {gib(min(sizes.values()))}, loader processes need 1 GiB or more"
            check.add(state, what, "docker run --shm-size=8g, or an emptyDir of medium Memory at /dev/shm")  # type: ignore[arg-type]
            break
    return check


def open_files(machines: Machines) -> Check:
    check = Check("open files")
    limits = {name: facts["files"][0] for name, facts in machines.items()}
    lowest, enough = min(limits.values()), ENOUGH_FILES[len(machines) > 1]
    check.so = f"{lowest} a process"
    if few := several(name for name, limit in limits.items() if limit < enough):
        state: State = "problem" if lowest < 256 else "warning"
        check.add(state, f"{few} allows a process {lowest} open files", "ulimit -n 65536 before `ray start`")
    return check


def free_disk(machines: Machines) -> Check:
    """Room for checkpoints, cached shards and temporary files."""
    check = Check("disk")
    rooms = {
        (name, what): disk
        for name, facts in machines.items()
        for what, disk in facts["disks"].items()
        if disk is not None
    }
    least: dict[str, int] = {}
    for (_, what), disk in rooms.items():
        least[what] = min(disk["free"], least.get(what, disk["free"]))
    check.so = "free: " + ", ".join(f"{what} {gib(free)}" for what, free in least.items())
    for what in least:
        for limit, state in ((GIB // 2, "problem"), (5 * GIB, "warning")):
            full = [(name, disk) for (name, kind), disk in rooms.items() if kind == what]
            full = [(name, disk) for name, disk in full if disk["free"] < limit or disk["no_inodes"]]
            if full:
                names, path = several(name for name, _ in full), full[0][1]["path"]
                free = "no inodes" if full[0][1]["no_inodes"] else gib(min(disk["free"] for _, disk in full))
                check.add(state, f"{what} {path} on {names} has {free} left", "free some space")  # type: ignore[arg-type]
                break
    return check


def network(machines: Machines, several_nodes: bool) -> Check:
    """The interface through which workers on different nodes talk."""
    check = Check("network")
    about = {name: facts["network"] for name, facts in machines.items()}
    first = next(iter(about.values()))
    check.so = f"{first['interface'] or 'no interface'} ({first['address'] or 'no address'})"
    for name, own in about.items():
        for variable, chosen in (("GLOO_SOCKET_IFNAME", own["gloo"]), ("NCCL_SOCKET_IFNAME", own["nccl"])):
            there = any(i in own["interfaces"] or i[0] in "^=" for i in (chosen or "").split(",") if i)
            prefix = variable.startswith("NCCL") and any(i.startswith(chosen or "?") for i in own["interfaces"])
            if chosen and not there and not prefix:
                what = f"{variable}={chosen} on {name}, which has {several(own['interfaces'])}"
                check.add("problem", what, "correct it where Ray is started")
            elif chosen == "lo" and several_nodes:
                what = f"{variable}=lo on {name} reaches no other node"
                check.add("problem", what, f"{variable}={own['interface'] or 'INTERFACE'}")
    loops = [name for name, own in about.items() if (own["resolves_to"] or "").startswith("127.") and not own["gloo"]]
    if several_nodes and loops:
        resolved, interface = about[loops[0]]["resolves_to"], about[loops[0]]["interface"] or "INTERFACE"
        what = f"the name of {several(loops)} resolves to {resolved}, which gloo would take for its own address"
        check.add(
            "warning", what, f"GLOO_SOCKET_IFNAME={interface} in the environment of `ray start`, or mend /etc/hosts"
        )
    return check


def gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size < 100 * GIB else f"{size / GIB:.0f} GiB"
