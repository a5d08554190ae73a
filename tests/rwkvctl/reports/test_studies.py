"""Studies are valid, their commands train what they say, and scores find their row."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path

import pytest

from rwkvctl.base.errors import UserError
from rwkvctl.config.specs.jobs import FinetuneSpec
from rwkvctl.config.specs.load import build, merge, parse_assignments, read_recipe
from rwkvctl.config.specs.study import read_study, row_spec, study_names
from rwkvctl.registry.versions import Version
from rwkvctl.reports import studies, study_table


@pytest.mark.parametrize("name", study_names())
def test_the_command_of_a_row_makes_its_spec(name: str):
    study = read_study(name)
    for row in study.rows:
        if row.set is None:
            continue
        for dataset in study.datasets:
            words = shlex.split(studies.command(study, row, dataset))
            assert words[:3] == ["rwkvctl", "finetune", dataset]
            fields = merge(read_recipe(dataset), parse_assignments(words[4::2]))
            assert build(FinetuneSpec, fields, "x") == row_spec(study, row, dataset)


def version(spec: FinetuneSpec, dsc: float | None) -> Version:
    metrics = {} if dsc is None else {studies.DSC: dsc, studies.HD95: 10.0}
    return Version("m", 1, "run", [], 0, {"spec": spec.model_dump_json(by_alias=True)}, metrics)


def test_a_report_has_sizes_at_once_and_the_mean_of_the_runs_that_fit():
    study = read_study("ccm_hidden")
    three = row_spec(study, study.rows[2], "synapse")
    elsewhere = three.model_copy(update={"data": three.data.model_copy(update={"dataset": "acdc"})})
    versions = [
        version(three, 0.80),
        version(three.model_copy(update={"seed": 7}), 0.82),
        version(three, None),  # was not evaluated
        version(elsewhere, 0.1),
        Version("enc", 1, "run", [], 0, {"spec": json.dumps({"job": "pretrain"})}, {studies.DSC: 0.1}),
    ]
    rows = studies.report(study, versions)
    assert [round(row.macs / 1e9, 3) for row in rows] == [10.588, 11.110, 11.632, 12.154]
    assert rows[1].parameters == 17_125_513 + 8 * 25  # 9 outputs, of which the count for 1 has one
    assert [row.scores for row in rows[:2]] == [{}, {}]
    score = rows[2].scores["synapse"]
    assert (round(score.dsc, 6), score.hd95, score.runs) == (81.0, 10.0, 2)


def changed(spec: FinetuneSpec, **train: object) -> FinetuneSpec:
    return spec.model_copy(update={"train": spec.train.model_copy(update=train)})


def test_seeds_have_a_spread_and_budgets_are_not_mixed(tmp_path: Path):
    study = read_study("ccm_hidden")
    two = row_spec(study, study.rows[1], "synapse")
    small = changed(two, epochs=2)
    [_, row, *_] = rows = studies.report(
        study, [version(small, 0.5), version(small.model_copy(update={"seed": 1}), 0.6)]
    )
    score = row.scores["synapse"]
    assert (score.dsc, score.dsc_deviation, score.hd95_deviation) == (
        pytest.approx(55),
        pytest.approx(7.0711, abs=1e-3),
        0,
    )
    assert (score.epochs, score.differs) == (2, (f"train.epochs 2, not {two.train.epochs}",))
    paths = study_table.write(study, rows, "mine", tmp_path)
    assert [path.name for path in paths] == ["mine.md", "mine.csv", "mine.tex", "mine.png"]
    text = (tmp_path / "mine.md").read_text()
    assert "| rate 2 | 17.13 | - | 11.110 | 11.11 | 55.00 ± 7.07 (2)* | 84.29 | 10.00 ± 0.00 (2)* | 8.85 |" in text
    assert f"* not comparable with the paper: train.epochs 2, not {two.train.epochs}: all that were trained." in text
    [line] = [row for row in csv.DictReader((tmp_path / "mine.csv").read_text().splitlines()) if row["row"] == "rate 2"]
    assert (float(line["dsc"]), line["runs"], line["epochs"], line["paper_dsc"]) == (
        pytest.approx(55),
        "2",
        "2",
        "84.29",
    )
    assert r"55.00 $\pm$ 7.07 (2)* & 84.29" in (tmp_path / "mine.tex").read_text()
    assert r"DSC synapse, \%" in (tmp_path / "mine.tex").read_text()
    whole = studies.report(study, [version(small, 0.5), version(two, 0.8)])[1].scores["synapse"]
    assert (whole.dsc, whole.runs, whole.dsc_deviation, whole.differs) == (pytest.approx(80), 1, None, ())


def test_bad_studies_are_one_line(tmp_path: Path):
    with pytest.raises(UserError, match="study 'skip' is unknown: did you mean skips"):
        read_study("skip")
    path = tmp_path / "mine.yaml"
    path.write_text("title: x\ndatasets: [acdc]\nnum_classes: 4\nimage_size: 224\nrows: [{label: a, sett: 1}]\n")
    with pytest.raises(UserError, match=r"study mine.yaml: rows.0.sett: unknown field"):
        read_study(str(path))
    path.write_text(path.read_text().replace("sett: 1", "set: {model.ccm_hiden: 1}"))
    with pytest.raises(UserError, match=r"row 'a': model.ccm_hiden: unknown field \(did you mean ccm_hidden"):
        read_study(str(path))
