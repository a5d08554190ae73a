"""Runs in an object store: a folder on each machine, and what the store has is the run."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import boto3
import pytest

from rwkvctl.base import identity
from rwkvctl.base.errors import NoSuchRunError, UserError
from rwkvctl.base.object_store import StoreError
from rwkvctl.config.specs.jobs import FinetuneSpec
from rwkvctl.config.specs.load import build, merge, parse_assignments, read_recipe
from rwkvctl.runs import folder as run_folder
from rwkvctl.runs import mirror, stored_journal
from rwkvctl.runs.journal import Journal, read, say
from rwkvctl.runs.lease import LeaseLost, RunLease
from rwkvctl.runs.objects import Objects, Taken
from rwkvctl.runs.reconcile import reconcile
from rwkvctl.runs.stored_checkpoints import StoredCheckpoints
from rwkvctl.runs.stored_journal import StoredJournal
from rwkvctl.training import checkpoint_folder as kept

from ...store_door import Door, no_rule

NUMBERS = itertools.count()


@pytest.fixture
def storage(door: Door) -> str:
    """A place of the test's own."""
    door.answers.clear()
    door.rule = no_rule
    return f"s3://bucket/runs{next(NUMBERS)}"


class Machines:
    """Caches of machines: the same store seen from each."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        self.tmp_path, self.monkeypatch = tmp_path, monkeypatch
        self.go_to("a")

    def go_to(self, name: str) -> None:
        self.monkeypatch.setenv("RWKVCTL_CACHE", str(self.tmp_path / name))


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    return Machines(tmp_path, monkeypatch)


def spec(name: str | None = "one", *assignments: str) -> FinetuneSpec:
    fields = merge(read_recipe("binary"), parse_assignments(["data.path=/data", "data.dataset=polyps", *assignments]))
    return build(FinetuneSpec, fields | {"name": name}, "test")


def listing(storage: str) -> dict[str, int]:
    """Bytes by key, as another program sees them."""
    prefix = storage.removeprefix("s3://bucket/") + "/"
    pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=prefix)
    return {one["Key"].removeprefix(prefix): one["Size"] for page in pages for one in page.get("Contents", ())}


def content(storage: str, key: str) -> bytes:
    where = f"{storage.removeprefix('s3://bucket/')}/{key}"
    return boto3.client("s3").get_object(Bucket="bucket", Key=where)["Body"].read()


def write_checkpoint(run_dir: Path, step: int, weights: bytes = b"weights") -> Path:
    """What counts of a checkpoint for those who do not load it."""
    import hashlib

    folder = run_dir / "checkpoints" / kept.name_of(step)
    folder.mkdir(parents=True)
    for name in ("model", "optimizer"):
        (folder / f"{name}.safetensors").write_bytes(weights + name.encode())
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    state: dict[str, Any] = {"schema": kept.SCHEMA, "sha256": hashes, "position": {"step": step, "epoch": 1}}
    state |= {"fingerprint": "f", "spec": {}, "param_groups": [], "written": "2026-01-31T12:00:00+00:00"}
    (folder / "state.json").write_text(json.dumps(state | {"checksum": kept.checksum(state)}))
    kept.point(run_dir / "checkpoints", "latest", folder)
    kept.prune(run_dir / "checkpoints")
    return folder


def send_checkpoints(run_dir: Path) -> int:
    store = mirror.of(run_dir)
    assert store is not None
    return StoredCheckpoints(store).push(lambda: None)


# Runs ---------------------------------------------------------------------------------------------------------------


def test_a_run_is_made_found_and_listed_from_any_machine(storage: str, machines: Machines):
    here = run_folder.create(spec(), storage)
    assert here.is_relative_to(machines.tmp_path / "a" / "runs")
    assert run_folder.read_spec(here).storage == storage
    assert set(listing(storage)) == {"one/spec.yaml"}
    machines.go_to("b")
    there = run_folder.find("one", storage)
    assert there.is_relative_to(machines.tmp_path / "b")
    assert run_folder.read_spec(there) == run_folder.read_spec(here)
    assert mirror.address(there) == f"{storage}/one"
    time.sleep(1.1)  # the store's clock has seconds
    run_folder.create(spec("two"), storage)
    assert run_folder.run_names(storage) == ["two", "one"]
    assert run_folder.find(f"{storage}/one", "/nowhere") == there
    with pytest.raises(NoSuchRunError, match=rf"run 'ono' is not in {storage}: did you mean one\?"):
        run_folder.find("ono", storage)


def test_a_name_is_given_once(storage: str, machines: Machines):
    run_folder.create(spec(), storage)
    machines.go_to("b")
    with pytest.raises(UserError, match=f"run one exists in {storage}: continue it with --resume one, or give another"):
        run_folder.create(spec(), storage)


def test_a_run_that_was_refused_leaves_nothing(storage: str, machines: Machines):
    folder = run_folder.create(spec(), storage)
    run_folder.discard_unbegun(folder)
    assert not folder.exists()
    assert listing(storage) == {}
    folder = run_folder.create(spec(), storage)
    say(folder, "begun")
    run_folder.discard_unbegun(folder)
    assert set(listing(storage)) == {"one/spec.yaml", "one/journal/0000000000000000.jsonl"}


def test_resume_by_name_and_auto(storage: str, machines: Machines):
    run_folder.create(spec(), storage)
    machines.go_to("b")
    same = spec(None)
    assert run_folder.resume("auto", same, storage) == run_folder.named("one", storage)
    assert run_folder.resume("auto", spec(None, "train.batch_size=7"), storage) is None
    folder = run_folder.resume("one", spec(), storage)
    assert folder is not None
    run_folder.adopt(folder, spec("one", "cluster.workers=2"))
    assert b"workers: 2" in content(storage, "one/spec.yaml")
    assert run_folder.resume_command("finetune", folder) == f"rwkvctl finetune --resume {storage}/one"
    machines.monkeypatch.setenv("RWKVCTL_STORAGE", storage)
    assert run_folder.resume_command("finetune", folder) == "rwkvctl finetune --resume one"


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (403, "access denied \\(403\\); check the credentials and the bucket's policy"),
        (500, "the store fails or cannot"),
    ],
)
def test_a_store_that_refuses_leaves_nothing(storage: str, machines: Machines, door: Door, answer: int, line: str):
    door.answers += [answer] * 6
    with pytest.raises(UserError, match=line) as caught:
        run_folder.create(spec(), storage)
    door.answers.clear()
    assert len(str(caught.value)) < 300
    assert "AKIA" not in str(caught.value)
    assert listing(storage) == {}
    assert not (machines.tmp_path / "a").exists()


def test_no_such_bucket(machines: Machines, door: Door):
    with pytest.raises(UserError, match=r"s3://nobody/runs/\S+: not found \(404\); check the name and the bucket"):
        run_folder.create(spec(), "s3://nobody/runs")
    with pytest.raises(StoreError, match="not found"):
        run_folder.find("one", "s3://nobody/runs")


def test_a_store_without_conditions_is_refused(storage: str, machines: Machines, monkeypatch: pytest.MonkeyPatch):
    write = Objects.write
    monkeypatch.setattr(Objects, "write", lambda self, key, content, **condition: write(self, key, content))
    with pytest.raises(UserError, match="ignores conditional writes"):
        run_folder.create(spec(), storage)
    assert listing(storage) == {}


# Files --------------------------------------------------------------------------------------------------------------


def test_only_what_was_changed_travels(storage: str, machines: Machines, door: Door):
    here = run_folder.create(spec(), storage)
    (here / "model").mkdir()
    (here / "model" / "weights").write_bytes(b"1")
    (here / "summary.json").write_text("{}")
    mirror.push(here)
    door.seen.clear()
    mirror.push(here)
    assert door.seen == []
    machines.go_to("b")
    there = mirror.opened(f"{storage}/one")
    assert not (there / "model").exists()
    mirror.pull(there, "model/")
    assert (there / "model" / "weights").read_bytes() == b"1"
    door.seen.clear()
    mirror.pull(there)
    assert [line.split("?")[0] for line in door.seen] == ["GET /bucket"]
    (there / "summary.json").write_text("{1}")
    mirror.push(there)
    machines.go_to("a")
    mirror.pull(here)
    assert (here / "summary.json").read_text() == "{1}"
    mirror.remove(here, "summary.json")
    assert "one/summary.json" not in listing(storage)
    mirror.pull(there)
    assert not (there / "summary.json").exists()
    (there / "model" / "weights").unlink()  # as a cleaner of caches would
    mirror.push(there)
    assert "one/model/weights" in listing(storage)
    mirror.pull(there)
    assert (there / "model" / "weights").exists()


def test_a_large_file_is_sent_in_parts(storage: str, machines: Machines, door: Door, monkeypatch: pytest.MonkeyPatch):
    from rwkvctl.runs import objects

    monkeypatch.setattr(objects, "PART", 5 << 20)
    monkeypatch.setattr(objects, "IN_ONE_PIECE", 10)
    here = run_folder.create(spec(), storage)
    (here / "encoder.safetensors").write_bytes(bytes(range(256)) * (3 << 14))  # 12 MiB
    mirror.push(here)
    assert sum("partNumber=" in line for line in door.seen) == 3
    machines.go_to("b")
    there = mirror.opened(f"{storage}/one")
    mirror.pull(there)
    assert (there / "encoder.safetensors").read_bytes() == (here / "encoder.safetensors").read_bytes()
    door.seen.clear()
    mirror.push(there)
    assert door.seen == []


def test_a_trials_folder_is_in_its_sweeps(storage: str, machines: Machines):
    sweep = mirror.place(f"{storage}/sweep")
    assert mirror.place(f"{storage}/sweep/trials/t1") == sweep / "trials" / "t1"


# The journal --------------------------------------------------------------------------------------------------------


def test_segments_grow_until_they_are_large(storage: str, machines: Machines, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stored_journal, "SEGMENT", 300)
    here = run_folder.create(spec(), storage)
    store = mirror.of(here)
    assert store is not None
    stored = StoredJournal(store)
    with Journal(here / "journal.jsonl", send=False) as journal:
        for step in range(20):
            journal.metrics({"train/loss": 1 / (step + 1)}, step)
            if step % 3 == 0:
                stored.push()
        stored.push()
    found = {name: size for name, size in listing(f"{storage}/one").items() if name.startswith("journal/")}
    assert 3 < len(found) < 10
    assert b"".join(content(f"{storage}/one", name) for name in sorted(found)) == (here / "journal.jsonl").read_bytes()
    machines.go_to("b")
    there = mirror.opened(f"{storage}/one")
    with Journal(there / "journal.jsonl") as journal:
        assert (there / "journal.jsonl").read_bytes() == (here / "journal.jsonl").read_bytes()
        journal.metrics({"train/loss": 9.0}, 20)
    assert reconcile(here) is None
    assert read(here / "journal.jsonl") == read(there / "journal.jsonl")


def test_a_line_without_its_end_stays_here(storage: str, machines: Machines):
    here = run_folder.create(spec(), storage)
    say(here, "whole")
    size = (here / "journal.jsonl").stat().st_size
    with (here / "journal.jsonl").open("ab") as file:
        file.write(b'{"t": 1, "kind": "ev')
    store = mirror.of(here)
    assert store is not None
    assert StoredJournal(store).push() == 0
    assert listing(storage)["one/journal/0000000000000000.jsonl"] == size
    assert reconcile(here) is None
    assert (here / "journal.jsonl").stat().st_size == size


def test_the_second_writer_of_a_journal_is_refused(storage: str, machines: Machines):
    here = run_folder.create(spec(), storage)
    say(here, "begun")
    store = mirror.of(here)
    assert store is not None
    late = StoredJournal(store)
    late.list()
    machines.go_to("b")
    say(mirror.opened(f"{storage}/one"), "taken over")
    with Journal(here / "journal.jsonl", send=False) as journal:
        journal.event("message", text="late")
    with pytest.raises(Taken):
        late.push()
    assert b"late" not in content(storage, "one/journal/0000000000000000.jsonl")


def test_a_write_whose_answer_was_lost_counts(storage: str, machines: Machines, door: Door):
    """The store has it, the answer is an error; the request is sent again, and its condition no longer holds."""
    here = run_folder.create(spec(), storage)
    say(here, "one")
    direct = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{door.behind}")
    key = f"{storage.removeprefix('s3://bucket/')}/one/journal/0000000000000000.jsonl"
    with Journal(here / "journal.jsonl", send=False) as journal:
        journal.event("message", text="two")

    def late(line: str) -> int | None:
        if line.startswith(f"PUT /bucket/{key}"):
            direct.put_object(Bucket="bucket", Key=key, Body=(here / "journal.jsonl").read_bytes())
            door.rule = no_rule
            return 500
        return None

    store = mirror.of(here)
    assert store is not None
    door.rule = late
    assert StoredJournal(store).push() > 0
    assert content(storage, "one/journal/0000000000000000.jsonl") == (here / "journal.jsonl").read_bytes()
    assert StoredJournal(store).push() == 0


# Going on ------------------------------------------------------------------------------------------------------------


def test_what_could_not_be_sent_is_sent_when_the_run_goes_on_here(storage: str, machines: Machines):
    here = run_folder.create(spec(), storage)
    with Journal(here / "journal.jsonl", send=False) as journal:
        journal.metrics({"train/loss": 1.0}, 1)
    write_checkpoint(here, 2)
    (here / "summary.json").write_text("{}")
    assert set(listing(storage)) == {"one/spec.yaml"}
    assert reconcile(here) is None
    assert {"one/summary.json", "one/checkpoints/step-00000002/state.json"} <= set(listing(storage))
    machines.go_to("b")
    there = mirror.opened(f"{storage}/one")
    assert reconcile(there) is None
    store = mirror.of(there)
    assert store is not None
    found = StoredCheckpoints(store).find()
    assert found is not None
    assert (found.path.name, found.damage) == ("step-00000002", [])
    assert (there / "journal.jsonl").read_bytes() == (here / "journal.jsonl").read_bytes()


def test_work_that_the_store_never_got_is_set_aside_when_the_run_went_on_elsewhere(storage: str, machines: Machines):
    here = run_folder.create(spec(), storage)
    say(here, "begun")
    write_checkpoint(here, 2)
    machines.go_to("b")
    there = mirror.opened(f"{storage}/one")
    assert reconcile(there) is None
    say(there, "went on")
    write_checkpoint(there, 4)
    send_checkpoints(there)
    machines.go_to("a")
    said = reconcile(here)
    assert said is not None
    aside = Path(said.split(" is in ")[1].split(", and")[0])
    assert (aside / "checkpoints" / "step-00000002").is_dir()
    store = mirror.of(here)
    assert store is not None
    found = StoredCheckpoints(store).find()
    assert found is not None
    assert found.path.name == "step-00000004"
    assert [entry.get("text") for entry in read(here / "journal.jsonl")[0]][1:] == ["begun", "went on"]


def test_another_course_of_the_journal_is_set_aside(storage: str, machines: Machines):
    here = run_folder.create(spec(), storage)
    say(here, "begun")
    machines.go_to("b")
    there = mirror.opened(f"{storage}/one")
    say(there, "went on")
    machines.go_to("a")
    with Journal(here / "journal.jsonl", send=False) as journal:
        journal.event("message", text="never sent, and longer than what the store has got from the other machine")
    assert "is not used" in (reconcile(here) or "")
    assert read(here / "journal.jsonl") == read(there / "journal.jsonl")


def test_a_machine_that_only_followed_deletes_nothing(storage: str, machines: Machines):
    """It has an old checkpoint and the whole journal; the newer checkpoints are the store's."""
    here = run_folder.create(spec(), storage)
    say(here, "begun")
    write_checkpoint(here, 2)
    send_checkpoints(here)
    machines.go_to("b")
    there = mirror.opened(f"{storage}/one")
    reconcile(there)
    store = mirror.of(there)
    assert store is not None
    StoredCheckpoints(store).find()
    for step in (4, 6):
        write_checkpoint(there, step)
        send_checkpoints(there)
    machines.go_to("a")
    assert reconcile(here) is None
    assert "one/checkpoints/step-00000006/state.json" in listing(storage)
    assert b"step-00000006" in content(storage, "one/checkpoints/latest.json")


# Checkpoints ---------------------------------------------------------------------------------------------------------


def test_a_checkpoint_counts_when_it_is_whole(storage: str, machines: Machines, door: Door):
    here = run_folder.create(spec(), storage)
    write_checkpoint(here, 2)
    door.seen.clear()
    send_checkpoints(here)
    sent = [line.rpartition("/one/checkpoints/")[2] for line in door.seen if line.startswith("PUT")]
    assert [line.split("?")[0] for line in sent] == [
        "step-00000002/model.safetensors", "step-00000002/optimizer.safetensors", "step-00000002/state.json",
        "latest.json",
    ]  # fmt: skip
    write_checkpoint(here, 4)
    door.rule = lambda line: 403 if line.startswith("PUT") and "step-00000004/optimizer" in line else None
    with pytest.raises(StoreError, match="access denied"):
        send_checkpoints(here)
    door.rule = no_rule
    machines.go_to("b")
    there = mirror.opened(f"{storage}/one")
    store = mirror.of(there)
    assert store is not None
    found = StoredCheckpoints(store).find()
    assert found is not None
    assert (found.path.name, found.damage) == ("step-00000002", [])
    assert not (there / "checkpoints" / "step-00000004").exists()
    machines.go_to("a")
    door.seen.clear()
    send_checkpoints(here)
    assert not any("PUT" in line and "step-00000004/model" in line for line in door.seen)  # it was there
    for step in (6, 8):
        write_checkpoint(here, step)
        send_checkpoints(here)
    names = {key.split("/")[2] for key in listing(storage) if key.count("/") == 3}
    assert names == {"step-00000006", "step-00000008"}


def test_a_damaged_copy_is_fetched_again_and_a_damaged_object_passed_over(storage: str, machines: Machines):
    here = run_folder.create(spec(), storage)
    for step in (2, 4):
        write_checkpoint(here, step)
        send_checkpoints(here)
    (here / "checkpoints" / "step-00000004" / "model.safetensors").write_bytes(b"weightsmodek")
    store = mirror.of(here)
    assert store is not None
    found = StoredCheckpoints(store).find()
    assert found is not None
    assert (found.path.name, found.damage) == ("step-00000004", [])
    key = f"{storage.removeprefix('s3://bucket/')}/one/checkpoints/step-00000004/model.safetensors"
    boto3.client("s3").put_object(Bucket="bucket", Key=key, Body=b"weightsmodek")
    machines.go_to("b")
    store = mirror.of(mirror.opened(f"{storage}/one"))
    assert store is not None
    found = StoredCheckpoints(store).find()
    assert found is not None
    assert found.path.name == "step-00000002"
    assert found.damage == ["step-00000004/model.safetensors does not match its hash in state.json"]


def test_the_command_finds_a_flipped_byte_in_the_store(storage: str, machines: Machines):
    from rwkvctl.cli import checkpoint

    here = run_folder.create(spec(), storage)
    write_checkpoint(here, 2)
    send_checkpoints(here)
    machines.monkeypatch.setenv("RWKVCTL_STORAGE", storage)
    assert kept.damage_of(checkpoint.folder_of("one") / "step-00000002") is None
    key = f"{storage.removeprefix('s3://bucket/')}/one/checkpoints/step-00000002/model.safetensors"
    boto3.client("s3").put_object(Bucket="bucket", Key=key, Body=b"weightsmodek")
    damage = kept.damage_of(checkpoint.folder_of("one") / "step-00000002")
    assert damage == "step-00000002/model.safetensors does not match its hash in state.json"


def test_what_cannot_be_kept_in_a_store_is_refused():
    from rwkvctl.config.specs.jobs import TuneSpec
    from rwkvctl.launch import preflight

    base = spec("one", "cluster.address=head:6379")
    preflight.check_storage(base.model_copy(update={"storage": "s3://bucket/runs"}))
    sweep = TuneSpec.model_construct(storage="s3://bucket/runs", base=base)
    with pytest.raises(UserError, match="a sweep cannot be kept in an object store"):
        preflight.check_storage(sweep)


# The lease -----------------------------------------------------------------------------------------------------------

HOLDER = """
import sys
from rwkvctl.runs import mirror
from rwkvctl.runs.lease import RunLease
lease = RunLease(mirror.place(sys.argv[1]), wait=float(sys.argv[2]), stale_after=float(sys.argv[3]))
print("taken", flush=True)
sys.stdin.read()
lease.release()
"""


def holder(uri: str, wait: float = 60, stale_after: float = 30) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, uri, str(wait), str(stale_after)]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(command, text=True, **pipes)


def test_one_of_two_processes_gets_the_lease(storage: str, machines: Machines):
    run_folder.create(spec(), storage)
    two = [holder(f"{storage}/one", wait=2) for _ in range(2)]
    try:
        loser = next(one for one in itertools.cycle(two) if one.poll() is not None or time.sleep(0.05))
        winner = two[1 - two.index(loser)]
        assert winner.stdout is not None
        assert winner.stdout.readline() == "taken\n"
        _, said = loser.communicate()
        assert f"run {storage}/one is being written by process {winner.pid} on " in said
        winner.kill()
        winner.wait()
        machines.go_to("b")
        lease = RunLease(mirror.opened(f"{storage}/one"), wait=0)  # of a dead process of this machine, at once
        lease.check()
        assert json.loads(content(storage, "one/lease.json"))["token"] == lease.token
        lease.release()
        assert "one/lease.json" not in listing(storage)
    finally:
        for one in two:
            one.kill()
            one.communicate()


def test_a_silent_holder_elsewhere_loses_it_and_learns_of_it(storage: str, machines: Machines, monkeypatch):
    here = run_folder.create(spec(), storage)
    monkeypatch.setattr(identity, "machine", lambda: "elsewhere")
    first = RunLease(here, stale_after=1e6)  # and so it never beats
    monkeypatch.undo()
    machines.go_to("b")
    there = mirror.opened(f"{storage}/one")
    with pytest.raises(UserError, match="is being written by"):
        RunLease(there, wait=0.3, stale_after=30)
    second = RunLease(there, wait=60, stale_after=0.5)
    first.check()  # it has not asked
    with pytest.raises(LeaseLost, match=f"{storage}/one was taken over by process"):
        first.confirm()
    with pytest.raises(LeaseLost):
        first.check()
    first.release()
    second.confirm()
    second.release()


def test_a_holder_beats_and_survives_a_store_that_fails(storage: str, machines: Machines, door: Door):
    here = run_folder.create(spec(), storage)
    with RunLease(here, stale_after=0.6) as lease:
        before = content(storage, "one/lease.json")
        failed = threading.Event()

        def fail(line: str) -> int | None:
            failed.set()
            return 500

        door.rule = fail
        assert failed.wait(60)
        lease.check()
        door.rule = no_rule
        deadline = time.monotonic() + 60
        while content(storage, "one/lease.json") == before and time.monotonic() < deadline:
            time.sleep(0.05)
        lease.confirm()
        assert content(storage, "one/lease.json") != before
