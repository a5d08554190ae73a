"""Rules that a version is held to, the history of an alias, and its way back."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from rwkvctl.base.errors import UserError
from rwkvctl.config.specs import rules as spec
from rwkvctl.registry import aliases
from rwkvctl.registry.measured import Measured
from rwkvctl.registry.promote import keep_on_server, promote
from rwkvctl.registry.register import record_scores
from rwkvctl.registry.versions import LOCK, list_models
from rwkvctl.runs.journal import Journal
from rwkvctl.runs.mlflow_client import connect
from rwkvctl.runs.sync import Syncer
from rwkvctl.training.paired import interval

from .conftest import DSC, OWN

CASES = 12
GOOD = [0.7 + 0.02 * number for number in range(CASES)]


def evaluated(uri: str, model: Path, folder: Path, values: list[float], ids: str = "case") -> None:
    """An evaluation of a model's own test cases: its MLflow run keeps their table."""
    folder.mkdir()
    rows = [f"{ids}{number},polyp,{value}" for number, value in enumerate(values)]
    (folder / "cases.csv").write_text("\n".join(["case,class,dsc_strict", *rows, ""]))
    with Journal(folder / "journal.jsonl") as journal:
        journal.artifact(folder / "cases.csv", "test")
        journal.event("end", status="FINISHED")
    syncer = Syncer(folder, uri, "e")
    syncer.push()
    where = Measured(**(OWN | {"trained_on": 0, "cases": len(values)}))  # type: ignore[arg-type]
    record_scores(
        model,
        {DSC: sum(values) / len(values)},
        where,
        run_id=syncer.run_id,
        intervals={DSC: interval(np.array(values))},
        tracking_uri=uri,
    )


def rules(text: str) -> spec.PromotionRules:
    return spec.parse(text, "rules.yaml")


@pytest.fixture
def scored(two_versions: str, registry_of_two: Path, tmp_path: Path) -> str:
    """Version 1 is the champion; version 2 is a little worse in each of the same cases."""
    evaluated(two_versions, registry_of_two / "model1", tmp_path / "evaluation1", GOOD)
    evaluated(two_versions, registry_of_two / "model2", tmp_path / "evaluation2", [value - 0.01 for value in GOOD])
    promote("net", 1, "champion", tracking_uri=two_versions)
    return two_versions


def test_not_worse_by_a_paired_test_on_the_same_cases(scored: str):
    [line] = promote("net", 2, "champion", rules=rules("not_worse: {margin: 0.02}"), tracking_uri=scored)
    assert line == (
        "dsc_strict 0.8000 beside 0.8100 of champion (version 1) over 12 cases: difference -0.0100, "
        "95 % interval -0.0100 to -0.0100, Wilcoxon p 0.00049"
    )
    [line] = promote("net", 1, "champion", rules=rules("not_worse: {}"), tracking_uri=scored)
    assert "difference +0.0100" in line
    [line] = promote("net", 1, "staging", rules=rules("not_worse: {than: live}"), tracking_uri=scored)
    assert line == "dsc_strict: no live to compare with yet"


REFUSED = {
    "not_worse: {margin: 0.005}": r"Wilcoxon p 0\.00049: it may be worse by more than 0\.005",
    "not_worse: {metric: hd95_mm_strict}": "version 2: its cases have no hd95_mm_strict; they have dsc_strict",
    "gates: [dsc_strict>=0.9, dsc_strict<=1]": r"not promoted: dsc_strict = 0\.8 is not >= 0\.9$",
    "gates: [dsc_strict>=0.9, dsc_strict>=1]": r"2 of 2 rules are not kept: dsc_strict = 0\.8 is not >= 0\.9; dsc_",
    "most: {megabytes: 0.001}": r"weights \d+\.\d MB is not <= 0\.001",
    "most: {parameters: 1.0e+6}": r"parameters: not known of this version is not <= 1,000",
    "most: {latency_ms: 1.0e-3}": r"latency \d+\.\d ms for one image of 32 x 32 px on the CPU is not <= 0\.001",
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_rule_that_is_not_kept_moves_nothing_and_says_what_was_seen(scored: str, text: str):
    with pytest.raises(UserError, match=REFUSED[text]) as caught:
        promote("net", 2, "champion", rules=rules(text), tracking_uri=scored)
    assert str(caught.value).startswith("net version 2 is not promoted: ")
    assert list_models(scored)[0].aliases == {"champion": 1}
    assert len(aliases.history(connect(scored), "net")) == 1


def test_other_cases_or_none_are_no_comparison(two_versions: str, registry_of_two: Path, tmp_path: Path):
    evaluated(two_versions, registry_of_two / "model1", tmp_path / "evaluation1", GOOD)
    evaluated(two_versions, registry_of_two / "model2", tmp_path / "evaluation2", GOOD, ids="other")
    promote("net", 1, "champion", tracking_uri=two_versions)
    with pytest.raises(UserError, match="12 and 12 cases, 24 of them in one only"):
        promote("net", 2, "champion", rules=rules("not_worse: {}"), tracking_uri=two_versions)
    client = MlflowClient(two_versions, registry_uri=two_versions)
    known = json.loads(client.get_model_version("net", "1").tags["scores.test"])
    client.set_model_version_tag("net", "1", "scores.test", json.dumps(known | {"run_id": None}))
    with pytest.raises(UserError, match="net version 1: the scores of its test cases were not kept; run: rwk"):
        promote("net", 2, "champion", rules=rules("not_worse: {}"), tracking_uri=two_versions)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must be a mapping of rules"),
        ("gates: [", "is not YAML"),
        ("gate: [a>1]", r"gate: unknown field \(did you mean gates\?"),
        ("not_worse: {margin: -1}", "not_worse.margin: "),
        ("not_worse: {than: v1}", "`latest` and v with a number are MLflow's own"),
        ("most: {latency: 3}", "most.latency: unknown field"),
        ("export: tflite", "export: "),
    ],
)
def test_rules_that_cannot_be_read(text: str, said: str):
    with pytest.raises(UserError, match=f"^rules.yaml: .*{said}"):
        rules(text)


def test_rules_on_the_server_hold_every_promotion(scored: str):
    with pytest.raises(UserError, match="rules: gate: unknown field"):
        keep_on_server("net", "gate: [a>1]", scored)
    keep_on_server("net", "gates: [dsc_strict>=0.805]\n", scored)
    with pytest.raises(UserError, match=r"dsc_strict = 0\.8 is not >= 0\.805"):
        promote("net", 2, "champion", tracking_uri=scored)
    assert promote("net", 1, "live", tracking_uri=scored) == ["dsc_strict = 0.81 >= 0.805"]
    keep_on_server("net", "", scored)
    assert promote("net", 2, "champion", tracking_uri=scored) == []


# The alias ----------------------------------------------------------------------------------------------------------


def test_an_alias_goes_back_step_by_step_and_its_history_tells_who(scored: str, monkeypatch: pytest.MonkeyPatch):
    client = connect(scored)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    promote("net", 2, "champion", gates=["dsc_strict>=0.5"], tracking_uri=scored)
    promote("net", 1, "champion", tracking_uri=scored)
    assert aliases.roll_back(client, "net", "champion").version == 2
    assert aliases.roll_back(client, "net", "champion").version == 1
    with pytest.raises(UserError, match="pointed nowhere before version 1: there is nothing to go back to"):
        aliases.roll_back(client, "net", "champion")
    moves = aliases.history(client, "net", "champion")
    assert [(one.kind, one.before, one.version) for one in moves] == [
        ("promote", None, 1), ("promote", 1, 2), ("promote", 2, 1), ("rollback", 1, 2), ("rollback", 2, 1),
    ]  # fmt: skip
    assert moves[1].who == "ada"
    assert moves[1].checks == ["dsc_strict = 0.8 >= 0.5"]
    with pytest.raises(UserError, match="net: has no alias live"):
        aliases.roll_back(client, "net", "live")


def test_an_alias_that_another_program_has_moved_is_not_moved_back(scored: str):
    client = connect(scored)
    client.set_registered_model_alias("net", "champion", "2")
    with pytest.raises(UserError, match="points to version 2, where another program has moved it"):
        aliases.roll_back(client, "net", "champion")
    promote("net", 1, "champion", tracking_uri=scored)
    assert aliases.roll_back(client, "net", "champion").version == 2


def test_of_promotions_at_once_one_wins_and_the_others_are_told(two_versions: str):
    begin, ends = threading.Barrier(4), []

    def try_it(version: int) -> None:
        client = connect(two_versions)
        begin.wait()
        try:
            ends.append(
                aliases.move(client, "net", "champion", version, expected=None, kind="promote", checks=[]).version
            )
        except UserError as error:
            ends.append(str(error))

    threads = [threading.Thread(target=try_it, args=(1 + number % 2,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [won] = [end for end in ends if isinstance(end, int)]
    assert sum("was moved from nothing to version" in str(end) for end in ends) == 3
    assert list_models(two_versions)[0].aliases == {"champion": won}
    [entry] = aliases.history(connect(two_versions), "net")
    assert entry.version == won
    assert [model.name for model in list_models(two_versions)] == ["net"]


def test_the_lock_of_a_killed_promotion_is_taken_over(two_versions: str, monkeypatch: pytest.MonkeyPatch):
    connect(two_versions).create_registered_model(f"{LOCK}net.champion")
    assert [model.name for model in list_models(two_versions)] == ["net"], "a lock is no model"
    monkeypatch.setattr(aliases, "DEAD_AFTER", 0.3)
    promote("net", 1, "champion", tracking_uri=two_versions)
    assert list_models(two_versions)[0].aliases == {"champion": 1}


def test_a_long_list_of_checks_fits_a_tag():
    entry = aliases.Move("champion", 1, "promote", 2, 1, "ada", "2026-11-26T00:00:00Z", ["x" * 300] * 40)
    text = aliases.as_text(entry)
    assert len(text) <= aliases.LONGEST_ENTRY
    assert text.endswith('"..."]}')
