"""Studies are valid, their commands train what they say, and scores find their row."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from rwkvctl.base.errors import UserError
from rwkvctl.config.specs.jobs import FinetuneSpec
from rwkvctl.config.specs.load import build, merge, parse_assignments, read_recipe
from rwkvctl.config.specs.study import read_study, row_spec, study_names
from rwkvctl.registry.versions import Version
from rwkvctl.reports import studies


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
