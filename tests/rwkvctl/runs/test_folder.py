"""Run folders: made, found, continued."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from rwkvctl.base.errors import UserError
from rwkvctl.base.files import write_json
from rwkvctl.config.specs.jobs import EvaluateSpec, FinetuneSpec, SpaceSpec, TuneSpec
from rwkvctl.runs import folder as run_folder


def spec(**fields: Any) -> FinetuneSpec:
    data = {"path": "/shards", "dataset": "clinicdb"} | fields.pop("data", {})
    train = {"epochs": 3, "batch_size": 8} | fields.pop("train", {})
    return FinetuneSpec.model_validate({"data": data, "optimizer": {"lr": 1e-3}, "train": train} | fields)


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return str(tmp_path / "runs")


def finish(folder: Path) -> None:
    write_json(folder / run_folder.RESULT, {"done": True})


def test_a_new_run_keeps_its_spec(storage: str):
    folder = run_folder.create(spec(name="first"), storage)
    assert folder == Path(storage) / "first"
    assert run_folder.read_spec(folder) == spec(name="first", storage=storage)
    assert run_folder.result(folder) is None


def test_a_name_is_taken_once(storage: str):
    folder = run_folder.create(spec(name="first"), storage)
    with pytest.raises(UserError, match=r"run first exists .* continue it with --resume first"):
        run_folder.create(spec(name="first", seed=3), storage)
    assert run_folder.read_spec(folder).seed == 42


def test_names_tell_job_data_and_time(storage: str):
    names = {run_folder.create(spec(), storage).name for _ in range(2)}
    assert len(names) == 2
    assert all(name.startswith("finetune-clinicdb-20") for name in names)
    sweep = TuneSpec(space_name="ccm", space=SpaceSpec.model_validate({"params": {"seed": {"choice": [1]}}}),
                     base=spec(), trials=1)  # fmt: skip
    assert run_folder.default_name(sweep).startswith("tune-ccm-clinicdb-")
    assert run_folder.default_name(EvaluateSpec(model="x")).startswith("evaluate-20")


@pytest.mark.parametrize("dataset", ["my set", "a/b", "ä", "-x", ".."])
def test_names_are_made_of_any_data_set(storage: str, dataset: str):
    folder = run_folder.create(spec(data={"dataset": dataset}), storage)
    assert folder.parent == Path(storage)
    assert run_folder.read_spec(folder).name == folder.name


def test_a_run_is_found_by_name_path_and_mlflow_id(storage: str, monkeypatch: pytest.MonkeyPatch):
    folder = run_folder.create(spec(name="first"), storage)
    other = run_folder.create(spec(name="second"), storage)
    write_json(folder / "mlflow.json", {"run_id": "0123456789abcdef"})
    write_json(other / "mlflow.json", {"run_id": "0123456799999999"})
    for reference in ("first", str(folder), "0123456789abcdef", "0123456789"):
        assert run_folder.find(reference, storage) == folder
    monkeypatch.chdir(storage)
    assert run_folder.find("./first", "/elsewhere") == folder


@pytest.mark.parametrize(
    ("reference", "said"),
    [("frist", "did you mean first?"), ("zzzz", "list runs with: rwkvctl run list"), ("01234567", "list runs with")],
)
def test_a_run_that_is_not_there(storage: str, reference: str, said: str):
    for name in ("first", "second"):  # two runs whose ids begin alike: neither is meant
        write_json(run_folder.create(spec(name=name), storage) / "mlflow.json", {"run_id": f"01234567{name}"})
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        run_folder.find(reference, storage)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"other": "x"}', "null"])
def test_a_damaged_mlflow_file_hides_no_run(storage: str, content: str):
    folder = run_folder.create(spec(name="first"), storage)
    (folder / "mlflow.json").write_text(content)
    assert run_folder.mlflow_run_id(folder) is None
    with pytest.raises(UserError, match="is not in"):
        run_folder.find("01234567", storage)


def test_runs_are_listed_newest_first(storage: str):
    for age, name in enumerate(["old", "older", "oldest"]):
        os.utime(run_folder.create(spec(name=name), storage), (1e9 - age, 1e9 - age))
    (Path(storage) / "no-run").mkdir()
    assert run_folder.run_names(storage) == ["old", "older", "oldest"]
    assert run_folder.run_names(f"{storage}/nowhere") == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "not a run"),
        ("a: [", "not valid YAML"),
        ("- 1", "field job must be one of"),
        ("job: dance", "field job must be one of pretrain"),
        ("job: finetune\ntrian: 1", "trian: unknown field"),
    ],
)
def test_a_damaged_spec_is_named(tmp_path: Path, content: str | None, said: str):
    if content is not None:
        (tmp_path / "spec.yaml").write_text(content)
    with pytest.raises(UserError, match=said) as caught:
        run_folder.read_spec(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


# Resume -------------------------------------------------------------------------------------------------------------


def test_auto_continues_the_newest_unfinished_run_of_an_equal_spec(storage: str):
    assert run_folder.resume("auto", spec(), storage) is None
    for age, (name, fields) in enumerate(
        [("finished", {}), ("other", {"seed": 7}), ("newer", {}), ("older", {}), ("oldest", {})]
    ):
        folder = run_folder.create(spec(name=name, **fields), storage)
        os.utime(folder, (1e9 - age, 1e9 - age))
    finish(Path(storage) / "finished")
    assert run_folder.resume("auto", spec(), storage) == Path(storage) / "newer"


def test_auto_with_a_name_means_that_run(storage: str):
    folder = run_folder.create(spec(name="mine"), storage)
    run_folder.create(spec(name="newer"), storage)
    assert run_folder.resume("auto", spec(name="absent"), storage) is None
    assert run_folder.resume("auto", spec(name="mine"), storage) == folder
    finish(folder)
    assert run_folder.resume("auto", spec(name="mine"), storage) == folder
    with pytest.raises(UserError, match="another spec"):
        run_folder.resume("auto", spec(name="mine", seed=7), storage)


def test_a_named_run_takes_over_where_it_runs_but_not_what(storage: str):
    folder = run_folder.create(spec(name="first", cluster={"workers": 2}), storage)
    changed = spec(cluster={"workers": 1, "launcher": "process"}, data={"path": "/moved", "workers": 0})
    assert run_folder.resume("first", changed, storage) == folder
    run_folder.adopt(folder, changed)
    kept = run_folder.read_spec(folder)
    assert isinstance(kept, FinetuneSpec)
    assert (kept.cluster.workers, kept.data.path, kept.name, kept.storage) == (1, "/moved", "first", storage)
    assert run_folder.resume("first", None, storage) == folder
    assert run_folder.read_spec(folder) == kept


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"seed": 7}, "seed: 42 -> 7"),
        ({"train": {"epochs": 9}}, "train.epochs: 3 -> 9"),
        ({"model": {"ccm": False}}, "model.ccm: True -> False"),
        ({"data": {"split": "x"}}, "data.split: None -> x"),
        ({"seed": 7, "train": {"batch_size": 4}}, "seed: 42 -> 7; train.batch_size: 8 -> 4"),
    ],
)
def test_another_spec_is_refused_and_the_run_stays_as_it_is(storage: str, fields: dict[str, Any], said: str):
    folder = run_folder.create(spec(name="first"), storage)
    before = (folder / "spec.yaml").read_bytes()
    with pytest.raises(UserError) as caught:
        run_folder.resume("first", spec(**fields), storage)
    assert f"another spec ({said}); start a new run" in str(caught.value)
    assert (folder / "spec.yaml").read_bytes() == before
    assert run_folder.resume("auto", spec(**fields), storage) is None


def test_a_sweep_may_be_extended(storage: str):
    space = SpaceSpec.model_validate({"params": {"seed": {"choice": [1, 2]}}})
    sweep = TuneSpec(name="s", space_name="x", space=space, base=spec(), trials=2)
    folder = run_folder.create(sweep, storage)
    moved = spec(storage="/there", tracking={"uri": "http://x"}, cluster={"address": "h:1"})
    more = sweep.model_copy(update={"trials": 5, "concurrency": 1, "base": moved})
    assert run_folder.resume("s", more, storage) == folder
    run_folder.adopt(folder, more)
    kept = run_folder.read_spec(folder)
    assert isinstance(kept, TuneSpec)
    assert kept.trials == 5


@pytest.mark.parametrize("content", ["", "{", json.dumps({"a": 1})])
def test_half_a_result_is_none(storage: str, content: str):
    folder = run_folder.create(spec(name="first"), storage)
    (folder / run_folder.RESULT).write_text(content)
    assert (run_folder.result(folder) is None) == (content in ("", "{"))


def test_a_run_keeps_its_name(storage: str):
    folder = run_folder.create(spec(name="first"), storage)
    assert run_folder.resume("first", spec(name="first"), storage) == folder
    with pytest.raises(UserError, match="run first: cannot be renamed to 'other'; leave out --name"):
        run_folder.resume("first", spec(name="other"), storage)


def test_auto_means_what_the_run_began_with(storage: str):
    """A run that was begun on a CPU goes on in fp32 on a GPU."""
    folder = run_folder.create(spec(name="first", train={"precision": "fp32"}), storage)
    run_folder.adopt(folder, spec(train={"precision": "auto"}))
    kept = run_folder.read_spec(folder)
    assert isinstance(kept, FinetuneSpec)
    assert kept.train.precision == "fp32"
    with pytest.raises(UserError, match=r"train\.precision: fp32 -> bf16"):
        run_folder.adopt(folder, spec(train={"precision": "bf16"}))


def test_many_changes_are_counted(storage: str):
    folder = run_folder.create(spec(name="first"), storage)
    changed = spec(seed=1, train={"epochs": 9, "batch_size": 2, "tail": "wrap"}, model={"encoder_weights": "x" * 500})
    with pytest.raises(UserError, match="and 2 more") as caught:
        run_folder.adopt(folder, changed)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("below", ["", "/below"])
def test_a_storage_that_is_a_file_is_named(tmp_path: Path, below: str):
    (tmp_path / "blocked").touch()
    storage = f"{tmp_path}/blocked{below}"
    with pytest.raises(UserError, match=f"storage {storage}: cannot store runs .*; give another folder"):
        run_folder.create(spec(name="first"), storage)


def test_the_command_that_continues_a_run(storage: str, home: Path):
    kept = run_folder.create(spec(name="first"), str(home / "runs"))
    assert run_folder.resume_command("finetune", kept) == "rwkvctl finetune --resume first"
    elsewhere = run_folder.create(spec(name="first"), storage + " of mine")
    assert run_folder.resume_command("finetune", elsewhere) == f"rwkvctl finetune --resume '{storage} of mine/first'"
