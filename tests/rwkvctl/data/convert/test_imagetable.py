"""Classes of images by tables, laid out as public data sets of skin, eyes and lungs are."""

from __future__ import annotations

import shlex
import shutil
from itertools import chain
from pathlib import Path

import numpy as np
import pandas
import pytest
from PIL import Image

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import synth
from rwkvctl.data.convert.class_table import parse
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.guess.doctor import examine
from rwkvctl.data.store.case_reader import reader_for
from rwkvctl.data.store.manifest import Manifest

from ...cli.test_data import run


def photographs(folder: Path, names: list[str], seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(rng.integers(0, 256, (32, 40, 3), np.uint8)).save(folder / name)


def labels_of(manifest: Manifest) -> dict[str, str]:
    """Stem of the file -> class."""
    ids = list(chain(*manifest.split_ids(manifest.default_split).values()))
    reader = reader_for(manifest, ids)
    stems = [Path(reader.meta(row)["orig_path"]).stem for row in range(len(reader))]
    return {stem: manifest.classes[reader.label(row)] for row, stem in enumerate(stems)}


@pytest.fixture
def skin(tmp_path: Path) -> tuple[Path, pandas.DataFrame]:
    """A source with 12 images, and a table of them to be written into it."""
    names = [f"ISIC_{n:07d}" for n in range(12)]
    photographs(tmp_path / "raw" / "images", [f"{name}.jpg" for name in names])
    return tmp_path / "raw", pandas.DataFrame({"image_id": names, "dx": ["nv", "mel", "bcc"] * 4})


@pytest.mark.parametrize("form", ["column", "onehot"])
def test_the_doctor_prints_the_line_that_prepares_a_table(form: str, tmp_path: Path):
    tree = synth.write(f"imagetable:{form}", tmp_path / "tree", n=18, size=32)
    [found] = examine([tree]).findings
    assert (found.dataset, found.form, found.samples, found.problems) == ("imagetable", form, 18, [])
    words = shlex.split(run("doctor", tree).partition("  prepare  ")[2])
    run(*words[2:], "--out", tmp_path / "set")
    manifest = Manifest.load(tmp_path / "set")
    assert manifest.classes == (["bcc", "mel", "nv"] if form == "column" else ["NV", "MEL", "BCC"])
    table = pandas.read_csv(next(path for path in tree.glob("*.csv") if "Metadata" not in path.name))
    names = table["dx"] if form == "column" else table[["NV", "MEL", "BCC"]].idxmax(axis=1)
    assert labels_of(manifest) == dict(zip(table.iloc[:, 1 if form == "column" else 0], names, strict=True))
    assert manifest.splits["grouped811_s41"].leak_groups_shared == 0
    assert ("class UNK has no image and was left out" in manifest.content.warnings) == (form == "onehot")


def test_a_table_a_part_with_ids_without_ending(tmp_path: Path):
    """As the package of APTOS 2019 that has three of each; numbers that a spreadsheet made fractions."""
    for part, count in (("train", 12), ("valid", 6), ("test", 6)):
        names = [f"{n:03d}" for n in range(count)]
        photographs(tmp_path / "raw" / f"{part}_images", [f"{name}.png" for name in names], seed=count + len(part))
        grades = [float((n + 1) % 3) if part == "valid" else n % 3 for n in range(count)]
        pandas.DataFrame({"id_code": names, "diagnosis": grades}).to_csv(tmp_path / "raw" / f"{part}.csv", index=False)
    classes = parse("none=0,mild=1,severe=2")
    manifest = prepare("imagetable", [tmp_path / "raw"], tmp_path / "set", classes=classes)
    assert (manifest.classes, list(manifest.splits)) == (["none", "mild", "severe"], ["table"])
    assert manifest.splits["table"].counts == {"train": 12, "val": 6, "test": 6}
    val = reader_for(manifest, manifest.split_ids("table")["val"])
    assert {(val.meta(row)["orig_path"], val.label(row)) for row in range(6)} == {
        (f"valid_images/{n:03d}.png", (n + 1) % 3) for n in range(6)
    }
    given = [str(tmp_path / "raw" / f"{part}.csv") for part in ("train", "valid", "test")]
    options = chain(*(("--csv", place) for place in given))
    run("prepare", "imagetable", "--source", tmp_path / "raw", *options, "--out", tmp_path / "again")
    assert Manifest.load(tmp_path / "again").classes == ["0", "1", "2"]


def test_a_table_without_labels_describes_and_copies_of_images_are_one(
    tmp_path: Path, skin: tuple[Path, pandas.DataFrame]
):
    """As Kaggle's package of HAM10000 has every folder twice."""
    raw, table = skin
    shutil.copytree(raw / "images", raw / "Images_again")
    table.to_csv(raw / "labels.tsv", sep="\t", index=False)
    more = pandas.DataFrame({"file": table["image_id"] + ".jpg", "Patient ID": [f"p{n // 3}" for n in range(12)]})
    more.assign(set=["train"] * 6 + ["val"] * 3 + ["test"] * 3).to_csv(tmp_path / "more.csv", sep=";", index=False)
    manifest = prepare("imagetable", [raw], tmp_path / "set", csv="labels.tsv", more_csv=(str(tmp_path / "more.csv"),))
    assert manifest.content.counts == {"samples": 12, "labeled": 12}
    assert manifest.splits["table"].counts == {"train": 6, "val": 3, "test": 3}
    assert manifest.splits["table"].leak_groups_shared == 0


def test_patients_in_two_parts_are_said_first(tmp_path: Path, skin: tuple[Path, pandas.DataFrame]):
    raw, table = skin
    table.assign(patient=["a", "b"] * 6, cohort=["train"] * 6 + ["test"] * 6).to_csv(raw / "t.csv", index=False)
    manifest = prepare("imagetable", [raw], tmp_path / "set", split_from="cohort")
    assert manifest.content.warnings[0].startswith("LEAK: 2 of 2 groups (patients) have images in several parts: a in")
    assert manifest.splits["table"].counts["test"] == 6


def test_folds_of_the_table(tmp_path: Path, skin: tuple[Path, pandas.DataFrame]):
    raw, table = skin
    table.assign(fold=[n // 3 for n in range(12)]).to_csv(raw / "t.csv", index=False)
    manifest = prepare("imagetable", [raw], tmp_path / "set")
    assert sorted(manifest.splits) == [f"table_fold{n}" for n in range(4)]
    held_out = [manifest.split_ids(f"table_fold{n}")["val"] for n in range(4)]
    assert [len(own) for own in held_out] == [3] * 4
    assert len(set(chain(*held_out))) == 12


def test_classes_are_named_joined_and_left_out(tmp_path: Path, skin: tuple[Path, pandas.DataFrame]):
    raw, table = skin
    table.assign(dx=["nv", "NV ", "mel", "scc"] * 3).to_csv(raw / "t.csv", index=False)
    (tmp_path / "c.csv").write_text("name,word\nbenign,nv\nmalign,mel\nignore,scc\n")
    manifest = prepare("imagetable", [raw], tmp_path / "set", classes=parse(str(tmp_path / "c.csv")))
    assert (manifest.classes, manifest.content.counts["samples"]) == (["benign", "malign"], 9)
    assert [list(labels_of(manifest).values()).count(name) for name in manifest.classes] == [6, 3]
    assert {
        "labels NV, nv differ in capitals alone and are taken for one",
        "3 images are of what --classes ignores, and were left out",
    } <= set(manifest.content.warnings)


def test_a_finding_may_be_labels_too(tmp_path: Path, skin: tuple[Path, pandas.DataFrame]):
    raw, table = skin
    table.assign(target=[0, 1] * 6).to_csv(raw / "t.csv", index=False)
    first = prepare("imagetable", [raw], tmp_path / "first")
    assert first.classes == ["0", "1"]
    assert "--csv t.csv: dx may be labels too; --labels takes another column" in first.content.warnings
    assert prepare("imagetable", [raw], tmp_path / "set", labels="DX").classes == ["bcc", "mel", "nv"]


def refused(raw: Path, **options: object) -> str:
    out = raw.with_name("refused")
    with pytest.raises(UserError) as caught:
        prepare("imagetable", [raw], out, **options)  # type: ignore[arg-type]
    assert not out.exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.assign(dx=t["dx"].where(t.index != 4)), "t.csv: row 6: has no label in column dx; fill it in"),
        (
            lambda t: t.replace("bcc", "a|b"),
            "row 4: has several labels (a|b); a classifier here has one class an image",
        ),
        (lambda t: t.replace("ISIC_0000003", "ISIC_9"), "row 5: image ISIC_9 is not in the source; add it, or remove"),
        (lambda t: t.replace("ISIC_0000003", ""), "--csv t.csv: row 5: names no image; add it, or remove the row"),
        (
            lambda t: t.replace("ISIC_0000003", "ISIC_0000001"),
            "row 5: images/ISIC_0000001.jpg has two labels (mel in row 3, nv here); correct one, or remove both",
        ),
        (
            lambda t: t.assign(dx=t["image_id"]),
            "column dx has 12 different labels in 12 rows, which are no classes; name the column with --labels",
        ),
        (lambda t: t.assign(dx="nv"), "column dx has one label alone, nv; at least two classes are needed"),
        (lambda t: t.assign(patient=["a"] * 12, split=["train"] * 11 + ["x"]), "column split is 'x', which is none of"),
    ],
)
def test_rows_that_are_wrong(change, said: str, tmp_path: Path, skin: tuple[Path, pandas.DataFrame]):
    raw, table = skin
    change(table).to_csv(raw / "t.csv", index=False)
    told = refused(raw)
    assert said in told
    assert "\n" not in told or "4 problems" in told


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"labels": "diagnose"}, "--csv t.csv: has no column 'diagnose' for --labels; there is image_id, dx; name it"),
        ({"labels": "dx,my"}, "--csv t.csv: has no column 'my' for --labels; there is image_id, dx"),
        ({"images": "photo"}, "--images photo: --csv t.csv has no such column; there is image_id, dx"),
        ({"split_from": "part"}, "--split-from part: --csv t.csv has no such column; there is image_id, dx"),
        ({"classes": ["nv", "mel"]}, "--classes: has no bcc, which --csv t.csv has in its column dx; name them all"),
        ({"classes": parse("a=#ff0000,b=#00ff00")}, "--classes: labels of a table have no colours"),
        ({"more_csv": ("u.csv",)}, "--csv u.csv: does not exist, here or in"),
    ],
)
def test_choices_that_are_wrong(options: dict, said: str, tmp_path: Path, skin: tuple[Path, pandas.DataFrame]):
    raw, table = skin
    table.to_csv(raw / "t.csv", index=False)
    told = refused(raw, csv="t.csv", **options)
    assert said in told
    assert "\n" not in told


def test_rows_of_several_classes_and_none(tmp_path: Path, skin: tuple[Path, pandas.DataFrame]):
    raw, table = skin
    onehot = pandas.get_dummies(table["dx"], dtype=int).assign(image=table["image_id"])
    onehot.loc[0, ["bcc", "mel", "nv"]] = 1, 1, 0
    onehot.to_csv(raw / "t.csv", index=False)
    assert "row 2: has 2 labels (bcc, mel) in its columns of 0 and 1; a classifier here has one" in refused(raw)
    onehot.loc[0, ["bcc", "mel", "nv"]] = 0, 0, 0
    onehot.to_csv(raw / "t.csv", index=False)
    assert "row 2: has no label in its columns of 0 and 1" in refused(raw)
    onehot.assign(nv=onehot["nv"] / 2).to_csv(raw / "t.csv", index=False)  # 0.5 for its own images
    assert "row 5: has '0.5' in column nv, which is neither 0 nor 1" in refused(raw, labels="bcc,mel,nv")
    manifest = prepare("imagetable", [raw], tmp_path / "set", labels="bcc,mel,nv", allow_partial=True)
    assert manifest.content.counts["samples"] == 8  # those of class nv have fractions
    assert {own.id for own in manifest.content.excluded} == {"2", "5", "8", "11"}


def test_no_table(tmp_path: Path):
    photographs(tmp_path / "raw", [f"{n}.png" for n in range(6)])
    assert "no table here has images of the source and a label for each; give one with --csv" in refused(
        tmp_path / "raw"
    )
    pandas.DataFrame({"image": [f"{n}.png" for n in range(6)], "age": range(40, 46)}).to_csv(
        tmp_path / "raw" / "t.csv", index=False
    )
    told = refused(tmp_path / "raw", csv="t.csv")
    assert "--csv t.csv: no column is called as labels are; there is image, age; name it with --labels COLUMN" in told


def test_a_second_table_is_for_labels_alone(tmp_path: Path, skin: tuple[Path, pandas.DataFrame]):
    raw, table = skin
    table.to_csv(raw / "t.csv", index=False)
    with pytest.raises(UserError, match="--csv a second time: pairs has no such choice; leave it out"):
        prepare("pairs", [raw], tmp_path / "set", csv="t.csv", more_csv=("t.csv",))
