"""nnU-Net's folds as splits, of volumes and of images, and back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import nnunet_folder, synth
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.feed.cases import iter_cases
from rwkvctl.data.store.case_reader import reader_for
from rwkvctl.data.store.verify import verify


@pytest.fixture(scope="module")
def livers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "source"
    return synth.write("nnunet:ct", folder, n=6, size=32) / "Dataset046_Livers"


def folds_in(tree: Path) -> list[dict[str, list[str]]]:
    return json.loads((tree / "splits_final.json").read_text())


def test_folds_of_volumes(livers: Path, tmp_path: Path):
    made = prepare("nnunet", [livers], tmp_path / "livers")
    assert verify(made.root, deep=True).problems == []
    assert list(made.splits) == ["nnunet_fold0", "nnunet_fold1"]
    assert made.default_split == "nnunet_fold0"
    for number, fold in enumerate(folds_in(livers)):
        name = f"nnunet_fold{number}"
        assert made.ids(name, "val") == [f"livers_{case}" for case in fold["val"]]
        assert made.ids(name, "train") == [f"livers_{case}_z{z:03d}" for case in fold["train"] for z in range(6)]
        assert made.ids(name, "test") == ["livers_liver_007", "livers_liver_008"], "imagesTs has labels"
        assert [case.image.shape for case in iter_cases(made, split=name, part="val")] == [(6, 32, 32)] * 3
        reader = reader_for(made, made.ids(name, "train"))
        assert {reader.image(row).shape for row in range(len(reader))} == {(32, 32)}
    assert not any("left out" in warning or "not used" in warning for warning in made.content.warnings)
    done = nnunet_folder.export(made.root, tmp_path, 9, split="nnunet")
    named = [{part: [f"livers_{case}" for case in fold[part]] for part in fold} for fold in folds_in(livers)]
    assert folds_in(Path(done.folder)) == named
    again = prepare("nnunet", [Path(done.folder)], tmp_path / "again" / "livers")
    assert {name: entry.counts for name, entry in again.splits.items()} == {
        name: entry.counts for name, entry in made.splits.items()
    }


def test_a_ratio_or_seed_takes_their_place(livers: Path, tmp_path: Path):
    made = prepare("nnunet", [livers], tmp_path / "livers", seeds=[3])
    assert list(made.splits) == ["random811_s3"]
    assert "splits_final.json was not used; cases are split at random, see --ratio and --seed" in made.content.warnings


def test_folds_of_images(tmp_path: Path):
    tree = synth.write("nnunet:slices", tmp_path / "source", n=8, size=32) / "Dataset043_Polyps"
    names = [f"polyp_{number:03d}" for number in range(1, 8)]
    (tree / "splits_final.json").write_text(json.dumps([{"train": names[2:], "val": names[:2]}] * 2))
    made = prepare("nnunet", [tree], tmp_path / "polyps")
    assert verify(made.root).problems == []
    assert made.splits["nnunet_fold1"].counts == {"train": 5, "val": 2, "test": 0}
    assert made.ids(None, "val") == ["polyps_polyp_001", "polyps_polyp_002"]
    assert "1 cases are in no fold of splits_final.json and were left out" in made.content.warnings
    assert "the 2 images of imagesTs were left out; the parts are those of its folds" in made.content.warnings


@pytest.mark.parametrize(("content", "line"), [
    ("{", "splits_final.json: is not JSON"),
    ("[]", r"must be a list of folds, \[{\"train\""),
    ('[{"train": ["liver_001"], "val": []}]', "must be a list of folds"),
    ('[{"train": ["liver_001"], "val": ["liver_099"]}]', "fold 0 names liver_099, of which there is no image with"),
    ('[{"train": ["liver_001"], "val": ["liver_001"]}]', "fold 0 has livers_liver_001 in train and in val"),
])  # fmt: skip
def test_what_is_refused(livers: Path, tmp_path: Path, content: str, line: str):
    tree = Path(shutil.copytree(livers, tmp_path / "in"))
    (tree / "splits_final.json").write_text(content)
    with pytest.raises(UserError, match=line) as caught:
        prepare("nnunet", [tree], tmp_path / "out", name="livers")
    assert "\n" not in str(caught.value)


def test_a_test_case_that_has_the_name_of_another_image(livers: Path, tmp_path: Path):
    tree = Path(shutil.copytree(livers, tmp_path / "in"))
    for kind, ending in (("images", "_0000.nii.gz"), ("labels", ".nii.gz")):
        (tree / f"{kind}Ts" / f"liver_007{ending}").rename(tree / f"{kind}Ts" / f"liver_001{ending}")
    with pytest.raises(UserError, match=r"imagesTs/liver_001_0000.nii.gz: has the name of another image"):
        prepare("nnunet", [tree], tmp_path / "out", name="livers")
    shutil.copy(tree / "imagesTr" / "liver_001_0000.nii.gz", tree / "imagesTs")
    made = prepare("nnunet", [tree], tmp_path / "out", name="livers")
    assert made.ids("nnunet_fold0", "test") == ["livers_liver_001", "livers_liver_008"]
    assert np.asarray(reader_for(made, ["livers_liver_001"]).mask(0)).shape == (6, 32, 32)
