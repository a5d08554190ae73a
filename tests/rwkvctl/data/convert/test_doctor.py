from __future__ import annotations

from pathlib import Path

import pytest

from rwkvctl.data.convert import synth
from rwkvctl.data.convert.doctor import examine

TREES = [f"{name}:{form}" for name, forms in synth.FORMS.items() for form in forms if name != "pairs"]


@pytest.mark.parametrize("name", TREES)
def test_every_download_is_known(name: str, tmp_path: Path):
    """Partial as they are, synthetic trees are told apart by names alone."""
    tree = synth.write(name, tmp_path / name.replace(":", "-"), n=6, size=32)
    found = examine([tree]).findings
    assert found[0].dataset == name.partition(":")[0]
    assert found[0].samples > 0


def test_it_says_what_is_missing(tmp_path: Path):
    tree = synth.write("acdc:h5", tmp_path / "tree", n=6, size=32)
    (next((tree / "ACDC_training_slices").iterdir())).unlink()
    finding = examine([tree]).findings[0]
    assert (finding.dataset, finding.form) == ("acdc", "h5")
    assert len(finding.problems) == 1
    assert "slices are missing" in finding.problems[0]


def test_unknown(tmp_path: Path):
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "b.TXT").write_text("")
    found = examine([tmp_path])
    assert found.findings == []
    assert found.extensions == {".txt": 2}


def test_a_root_of_several_data_sets_names_those_and_no_other(tmp_path: Path):
    """The images and masks of Kvasir-SEG are no set of one's own as well."""
    for name in ("clinicdb", "busi", "kvasir"):
        synth.write(name, tmp_path / "raw" / name, n=6, size=32)
    assert {finding.dataset for finding in examine([tmp_path / "raw"]).findings} == {"clinicdb", "busi", "kvasir"}
