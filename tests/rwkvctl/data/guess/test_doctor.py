from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest

from rwkvctl.data.convert import synth
from rwkvctl.data.guess.doctor import examine
from rwkvctl.data.store.manifest import Manifest

from ...cli.test_data import run

TREES = [f"{name}:{form}" for name, forms in synth.FORMS.items() for form in forms]


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


@pytest.mark.parametrize(
    ("form", "options", "question"),
    [
        ("suffix", "--images 'Augen 2019/Bilder/Größe *' --masks 'Augen 2019/Masken/Größe *_maske'", ""),
        (
            "annotators",
            "--images '*' --masks '*_{1stHO,2ndHO}' --annotator 1stHO",
            "masks of one thing are by several (1stHO, 2ndHO), --annotator says whose are taken",
        ),
        ("instances", "--images '{id}/images/*' --masks '{id}/masks/{n}'", ""),
        (
            "classes",
            "--images 'foto/case_*' --masks 'organ/case_*_*' --classes background,heart,lung",
            "are they to be joined, leave out --classes",
        ),
        ("parts", "--images '*/Fotos/*' --masks '*/Ground truth/*' --split-from folders", ""),
    ],
)
def test_the_line_that_prepares_a_folder_of_any_layout(form: str, options: str, question: str, tmp_path: Path):
    tree = synth.write(f"pairs:{form}", tmp_path / "tree", n=6, size=32)
    finding = examine([tree]).findings[0]
    assert (finding.options, len(finding.examples), finding.problems) == (options, 3, [])
    assert question in finding.question
    assert bool(question) == bool(finding.question)
    printed = run("doctor", tree)
    assert ("  ask  " in printed) == bool(question)
    words = shlex.split(printed.partition("  prepare  ")[2])
    run(*words[2:], "--out", tmp_path / "set")
    assert Manifest.load(tmp_path / "set").content.counts == {"samples": 6, "labeled": 6}


def test_two_folders_of_masks_are_asked_about(tmp_path: Path):
    tree = synth.write("folder", tmp_path / "tree", n=6, size=32)
    (tree / "images").rename(tree / "photos")
    for name in ("masks A", "masks B"):
        (tree / name).mkdir()
        for path in (tree / "masks").iterdir():
            (tree / name / path.name).write_bytes(path.read_bytes())
    for path in (tree / "masks").iterdir():
        path.unlink()
    (tree / "masks").rmdir()
    printed = run("doctor", tree)
    assert "masks of one thing are by several (A, B), --annotator says whose are taken" in printed
    assert "--images 'photos/*' --masks 'masks {A,B}/*' --annotator A" in printed


def test_orphans_of_a_guess_are_problems(tmp_path: Path):
    tree = synth.write("pairs:suffix", tmp_path / "tree", n=6, size=32)
    (tree / "Augen 2019" / "Masken" / "Größe 2_maske.gif").unlink()
    finding = examine([tree]).findings[0]
    assert (finding.dataset, finding.samples, len(finding.problems)) == ("pairs", 5, 1)
    assert "  prepare  rwkvctl data prepare pairs" in run("doctor", tree, code=1)


def test_photographs_of_two_classes_are_no_pairs(tmp_path: Path):
    tree = synth.write("imagefolder", tmp_path / "tree", n=6, size=32)
    for path in list((tree / "train").iterdir()):
        path.rename(tree / path.name)
    (tree / "val").rename(tmp_path / "elsewhere")
    assert examine([tree]).findings == []


def test_slices_that_are_only_called_like_those_of_synapse(tmp_path: Path):
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        for number in range(4):
            image, label = rng.random((16, 16), np.float32), (rng.random((16, 16)) > 0.5).astype(np.uint8)
            np.savez(tmp_path / part / f"case{number:04d}_slice000.npz", image=image, label=label)
    assert [finding.dataset for finding in examine([tmp_path]).findings] == ["arrays"]
