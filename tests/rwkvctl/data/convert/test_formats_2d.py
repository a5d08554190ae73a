"""The 2-D data sets: what their modules make of a source tree, and what they say when something is wrong with it."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import synth
from rwkvctl.data.convert.formats import clinicdb, get
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.convert.sources import open_sources
from rwkvctl.data.images import files as image_files
from rwkvctl.data.store.case_reader import reader_for
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.reader import Reader
from rwkvctl.data.store.splits import DEFAULT_SEEDS, random_split
from rwkvctl.data.store.verify import verify

from .test_prepare import tree as contents

RANDOM = [f"random811_s{seed}" for seed in DEFAULT_SEEDS]
GROUPED = [f"grouped811_s{seed}" for seed in DEFAULT_SEEDS]

# tree: (first key, last key), samples by shard part, splits, class ids in the masks, image kind and size of the first
CASES = {
    "busi": (
        ("busi_benign_0001", "busi_normal_0002"), {"all": 10, "normal": 2}, [*RANDOM, *GROUPED], 2, "png", (38, 48),
    ),
    "clinicdb:tif": (
        ("cvcclinic_0001", "cvcclinic_0070"), {"all": 12},
        [*RANDOM, *(f"by_sequence811_s{seed}" for seed in DEFAULT_SEEDS)], 2, "png", (36, 48),
    ),
    "clinicdb:png": (("cvcclinic_0001", "cvcclinic_0070"), {"all": 12}, None, 2, "png", (36, 48)),
    "clinicdb:jpg": (("cvcclinic_0001", "cvcclinic_0070"), {"all": 12}, None, 2, "jpg", (48, 48)),
    "colondb:png": (("cvccolon_0001", "cvccolon_0012"), {"all": 12}, [*RANDOM, *GROUPED], 2, "png", (41, 48)),
    "colondb:bmp": (("cvccolon_0001", "cvccolon_0012"), {"all": 12}, None, 2, "png", (41, 48)),
    "kvasir": (
        ("kvasir_cju0qkwl35piu0993l0dewei2", ""), {"all": 12}, [*RANDOM, *GROUPED], 2, "jpg", None,
    ),
    "isic2017": (
        ("isic2017_0000000", "isic2017_0016003"), {"train": 12, "val": 4, "test": 4}, ["official"], 2, "jpg", (36, 48),
    ),
    "glas": (
        ("glas_train_001", "glas_testb_003"), {"train": 12, "testa": 6, "testb": 3},
        [f"{kind}910_s{seed}" for kind in ("random", "by_patient") for seed in DEFAULT_SEEDS], 2, "png", (32, 48),
    ),
    "goals:full": (("goals_0001", "goals_0203"), {"train": 6, "val": 3, "test": 3}, ["official"], 4, "png", (34, 48)),
    "goals:public": (
        ("goals_0001", "goals_0203"), {"train": 6, "val": 3, "test": 3}, None, 4, "png", (34, 48),
    ),
    "psvfm": (
        ("psvfm_v01_anon001_00100", "psvfm_v06_anon012_00125"), {"train": 6, "val": 2, "test": 4}, ["by_video"], 2,
        "png", (48, 48),
    ),
    "fugc": (
        ("fugc_l_0001", "fugc_t_0006"), {"labeled": 12, "unlabeled": 24, "val": 6, "test": 6}, ["official"], 3,
        "png", (29, 48),
    ),
}  # fmt: skip
NAMES = sorted({tree.partition(":")[0] for tree in CASES})


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the time of a small set goes into fsync; no power cut is tested here."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def make(tree: str, folder: Path, *traps: str, **options) -> Manifest:
    """Write the tree with its traps, and prepare it."""
    source = synth.write(tree, folder / "source", n=12, size=48, traps=traps)
    name = tree.partition(":")[0]
    return prepare(name, [source], folder / name, allow_partial=True, **options)


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Manifest]:
    """The data set that a tree without traps becomes. Tests must not change it."""
    return functools.cache(lambda tree: make(tree, tmp_path_factory.mktemp("clean")))


def error_of(prepared: Callable[[], Manifest]) -> str:
    """The one line that is printed; what is said of shards kept for the next run is left out."""
    with pytest.raises(UserError) as caught:
        prepared()
    line, *others = str(caught.value).splitlines()
    assert all("finished shards are kept" in other for other in others), str(caught.value)
    return line


def keys(manifest: Manifest) -> list[str]:
    return [key.decode() for key in manifest.index.keys]


@pytest.mark.parametrize("tree", CASES)
def test_prepare(tree: str, clean: Callable[[str], Manifest]):
    (first, last), parts, splits, num_classes, kind, size = CASES[tree]
    manifest = clean(tree)
    report = verify(manifest.root, deep=True)
    assert report.problems == []
    found = keys(manifest)
    assert {shard.name.rpartition("-")[0]: shard.n for shard in manifest.shards} == parts
    assert len(found) == sum(parts.values())
    if tree != "kvasir":
        assert (found[0], found[-1]) == (first, last)
    if splits:
        assert list(manifest.splits) == sorted(splits)
        assert manifest.default_split == splits[0]
    assert len(manifest.classes) == num_classes
    assert manifest.content.source.licence
    reader = Reader(manifest)
    labeled = [row for row in range(len(reader)) if reader.meta(row)["labeled"]]
    values = set(chain.from_iterable(np.unique(reader.mask(row)).tolist() for row in labeled))
    assert values == set(range(num_classes))
    assert reader.has(0, kind)
    assert reader.image(0).dtype == np.uint8
    assert reader.image(0).shape[:2] == reader.mask(0).shape == (size or reader.mask(0).shape)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_files_give_the_same_shards(name: str, clean: Callable[[str], Manifest], tmp_path: Path):
    assert contents(make(name, tmp_path).root) == contents(clean(name).root)


@pytest.mark.parametrize("name", NAMES)
def test_an_archive_in_a_folder_of_any_name(name: str, clean: Callable[[str], Manifest], tmp_path: Path):
    tree = synth.write(name, tmp_path / "tree", n=12, size=48)
    folder = tmp_path / "Téléchargements (2)"
    shutil.make_archive(str(folder / "my data"), "zip", tree)
    made = prepare(name, [folder], tmp_path / name, allow_partial=True)
    assert keys(made) == keys(clean(name))
    assert made.content.samples_sha256 == clean(name).content.samples_sha256


def test_two_data_sets_in_one_folder(clean: Callable[[str], Manifest], tmp_path: Path):
    for name in ("busi", "kvasir"):
        synth.write(name, tmp_path / "both" / name, n=12, size=48)
    made = prepare("kvasir", [tmp_path / "both"], tmp_path / "kvasir", allow_partial=True)
    assert keys(made) == keys(clean("kvasir"))
    assert any("25 image files have names that this data set does not have" in text for text in made.content.warnings)


@pytest.mark.parametrize("name", NAMES)
def test_a_download_that_lacks_files_is_refused_unless_allowed(name: str, tmp_path: Path):
    source = synth.write(name, tmp_path / "source", n=12, size=48)
    with pytest.raises(UserError, match="complete the source, or accept it with --allow-partial"):
        prepare(name, [source], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", NAMES)
def test_an_unrelated_folder_is_refused(name: str, tmp_path: Path, textures: Path):
    line = error_of(lambda: prepare(name, [textures], tmp_path / "out", allow_partial=True))
    assert f"nothing of {name} here; it comes as " in line


@pytest.mark.parametrize("tree", CASES)
def test_recognise(tree: str, tmp_path: Path):
    name = tree.partition(":")[0]
    with open_sources([synth.write(tree, tmp_path / f"{name}-download", n=6, size=32)]) as source:
        recognised = {other for other in NAMES if get(other).recognise(source)}
    assert recognised == {name}


# What is wrong with a tree ------------------------------------------------------------------------------------------

TRAPS = [
    ("busi", "size", r"benign \(4\)_mask_1.png: is 48 x 20, its image .* give .* --busi-masks first"),
    ("busi", "transparent", r"malignant \(1\)_mask.png: mask is fully transparent"),
    ("busi", "unpaired", r"benign \(2\).png: has no mask"),
    ("clinicdb:tif", "ids", r"1.tif: mask values \{0: 75 %, 7: 25 %\}; a binary mask has 0 and 255"),
    ("clinicdb:jpg", "number", r"613.jpg: frames are numbered 1 to 612"),
    ("kvasir", "boxes", r"cju0{22}.jpg: is not in kavsir_bboxes.json"),
    ("kvasir", "grey", r"jpg: mask values \{120: 1e\+02 %\}; a binary mask has 0 and 255"),
    ("isic2017", "unpaired", r"ISIC_0016000.jpg: has no mask"),
    ("isic2017", "part", r"ISIC_0000000.jpg: has the same id as .*ISIC_0000000.jpg"),
    ("glas", "grade", r"train_1.bmp: is not in Grade.csv"),
    ("glas", "unpaired", r"testB_1.bmp: has no mask"),
    ("goals:full", "grey-79", r"Layer_Masks/0001.png: mask values \{0: .*79: .*\}; only 255, 0, 80, 160 are known"),
    ("goals:full", "range", r"0301.png: images are numbered 1 to 300"),
    ("psvfm", "video", r"has a video07; PSVFM has 01 to 06"),
    ("fugc", "value-3", r"val/labels/0001.png: mask values \{0: .*3: .*\}; only 0, 1, 2 are known"),
    ("fugc", "unpaired", r"labeled_data/images/0002.png: has no mask"),
    *((name, "truncated", "corrupt image") for name in NAMES),
    *((name, "link", "has no (mask|image)") for name in NAMES),
]


@pytest.mark.parametrize(("tree", "trap", "match"), TRAPS, ids=[f"{tree}-{trap}" for tree, trap, _ in TRAPS])
def test_reported_in_one_line(tree: str, trap: str, match: str, tmp_path: Path):
    """As an error, or among what a partial source leaves out."""
    with contextlib.suppress(UserError):
        made = make(tree, tmp_path, trap)
        lines = [f"{own.id}: {own.why}" for own in made.content.excluded]
        assert verify(made.root).ok
    if not (tmp_path / tree.partition(":")[0]).exists():
        source = tmp_path / "source"
        lines = [error_of(lambda: prepare(tree.partition(":")[0], [source], tmp_path / "out", allow_partial=True))]
        assert str(source) in lines[0]
    assert len(lines) == 1
    assert re.search(match, lines[0])
    assert "\n" not in lines[0]


WARNINGS = [
    ("colondb:png", "kvasir", "2 image files have names that this data set does not have"),
    ("psvfm", "faint", r"1 of \d+ images: mean\(channels\) > 0 gives another mask"),
    *((name, "copy", "1 image files have names that this data set does not have, .*first .* copy") for name in NAMES),
]


@pytest.mark.parametrize(("tree", "trap", "match"), WARNINGS, ids=[f"{tree}-{trap}" for tree, trap, _ in WARNINGS])
def test_warned_of(tree: str, trap: str, match: str, clean: Callable[[str], Manifest], tmp_path: Path):
    spoiled = make(tree, tmp_path, trap)
    new = set(spoiled.content.warnings) - set(clean(tree).content.warnings)
    assert [warning for warning in new if re.search(match, warning)]
    assert keys(spoiled) == keys(clean(tree))


@pytest.mark.parametrize("trap", ["litter", "letter-case"])
@pytest.mark.parametrize("name", NAMES)
def test_harmless(name: str, trap: str, clean: Callable[[str], Manifest], tmp_path: Path):
    spoiled = make(name, tmp_path, trap)
    assert spoiled.content.warnings == clean(name).content.warnings
    assert keys(spoiled) == keys(clean(name))


def test_decoys_of_psvfm_are_ignored(clean: Callable[[str], Manifest], tmp_path: Path):
    spoiled = make("psvfm", tmp_path, "binary-tif")
    assert spoiled.fingerprint == clean("psvfm").fingerprint
    assert not any("names" in warning for warning in spoiled.content.warnings)


# One by one ---------------------------------------------------------------------------------------------------------


def test_busi_masks(tmp_path: Path):
    union, first = make("busi", tmp_path / "a"), make("busi", tmp_path / "b", busi_masks="first")
    masks = [reader_for(manifest, ["busi_benign_0004"]).mask(0) for manifest in (union, first)]
    assert masks[0].sum() > masks[1].sum() > 0
    assert "1 images have several masks: their union" in union.content.warnings
    assert set(chain(*union.split_ids(RANDOM[0]).values())) == set(keys(union)[:-2])  # normal images are in no split
    with pytest.raises(UserError, match="--busi-masks all: choose one of union, first"):
        make("busi", tmp_path / "c", busi_masks="all")


def test_busi_duplicates_stay_together(tmp_path: Path):
    manifest = make("busi", tmp_path, "duplicate")
    twins = {"busi_benign_0001", "busi_malignant_0002"}
    for name in GROUPED:
        assert any(twins <= set(ids) for ids in manifest.split_ids(name).values())
        assert manifest.splits[name].leak_groups_shared == 0


def test_sequences_of_clinicdb():
    assert [clinicdb.sequence_of(frame) for frame in (1, 25, 26, 199, 200, 205, 206, 591, 592, 612)] == [
        f"sequence_{n:02d}" for n in (1, 1, 2, 9, 10, 10, 11, 28, 29, 29)
    ]


@pytest.mark.parametrize("seed", DEFAULT_SEEDS)
def test_the_papers_split_of_clinicdb_leaks_wholly(seed: int):
    split = random_split([str(n) for n in clinicdb.FRAMES], (8, 1, 1), seed)
    train = {clinicdb.sequence_of(int(n)) for n in split.ids["train"]}
    assert len(split.ids["test"]) == 62
    assert all(clinicdb.sequence_of(int(n)) in train for n in split.ids["test"])


def test_clinicdb_by_sequence(tmp_path: Path):
    manifest = make("clinicdb", tmp_path)
    entry = manifest.splits["by_sequence811_s41"]
    assert (entry.leak_groups_shared, entry.counts) == (0, {"train": 6, "val": 3, "test": 3})
    assert manifest.splits["random811_s41"].leak_groups_shared > 0
    assert "partial source: 12 of 612 frames; missing 4, 5, 6, 7, 8, ..." in manifest.content.warnings


def test_kvasir_official_lists(tmp_path: Path):
    source = synth.write("kvasir", tmp_path / "source", n=12, size=48)
    names = sorted(path.stem for path in (source / "Kvasir-SEG" / "images").iterdir())
    (source / "train.txt").write_text("\n".join(names[:10]))
    (source / "val.txt").write_text("\r\n".join(names[10:]))
    manifest = prepare("kvasir", [source], tmp_path / "kvasir", allow_partial=True)
    assert manifest.ids("official", "val") == [f"kvasir_{name}" for name in names[10:]]
    (source / "Kvasir-SEG" / "kavsir_bboxes.json").write_text("{")
    line = error_of(lambda: prepare("kvasir", [source], tmp_path / "again", allow_partial=True))
    assert "kavsir_bboxes.json: cannot be read" in line


def test_isic_max_side(tmp_path: Path):
    source = synth.write("isic2017", tmp_path / "source", n=6, size=128)
    manifest = prepare("isic2017", [source], tmp_path / "isic", allow_partial=True, max_side=96)
    reader = Reader(manifest)
    assert {max(reader.mask(row).shape) for row in range(len(reader))} == {96}
    assert any("96" in warning for warning in manifest.content.warnings)


def test_glas_instances_and_patients(tmp_path: Path):
    manifest = make("glas", tmp_path)
    reader = reader_for(manifest, ["glas_train_001"])
    instances = reader.read(0, "inst.png")
    assert image_files.sniff(instances) == "png"
    assert reader.meta(0)["patient_id"].startswith("patient_")
    entry = manifest.splits["random910_s41"]
    assert entry.counts == {"train": 10, "val": 2, "test": 9}
    train, val = (set(manifest.ids("by_patient910_s41", part)) for part in ("train", "val"))
    patient_of = {key: reader_for(manifest, [key]).meta(0)["patient_id"] for key in train | val}
    assert not {patient_of[key] for key in train} & {patient_of[key] for key in val}


def test_glas_needs_its_table(tmp_path: Path):
    source = synth.write("glas", tmp_path / "source", n=6, size=48)
    table = next(source.rglob("Grade.csv"))
    table.write_text("image;patient\n1;2\n")
    line = error_of(lambda: prepare("glas", [source], tmp_path / "bad", allow_partial=True))
    assert "Grade.csv: has no columns name and patient ID" in line
    table.unlink()
    with pytest.raises(UserError, match=r"has no Grade\.csv, so patients are not known; add it"):
        prepare("glas", [source], tmp_path / "bad")
    manifest = prepare("glas", [source], tmp_path / "glas", allow_partial=True)
    assert any("has no Grade.csv" in warning for warning in manifest.content.warnings)


def test_goals_without_masks_of_the_held_out_parts(tmp_path: Path):
    manifest = make("goals:public", tmp_path)
    assert list(manifest.splits) == [f"goals_train_5fold_f{n}" for n in range(1, 6)]
    assert "not comparable with the paper" in manifest.splits["goals_train_5fold_f1"].rule
    assert manifest.content.counts == {"samples": 12, "labeled": 6}
    assert "no masks for the val images: they are unlabeled" in manifest.content.warnings


def test_goals_greys(tmp_path: Path):
    manifest = make("goals:full", tmp_path)
    with Image.open(next(tmp_path.rglob("Layer_Masks/0001.png"))) as stored:
        grey = np.asarray(stored)
    mask = reader_for(manifest, ["goals_0001"]).mask(0)
    assert set(zip(grey.ravel().tolist(), mask.ravel().tolist(), strict=True)) == {(0, 1), (80, 2), (160, 3), (255, 0)}


def test_fugc_unlabeled_images_are_in_no_split(tmp_path: Path):
    manifest = make("fugc", tmp_path)
    assert manifest.content.counts == {"samples": 48, "labeled": 24}
    assert manifest.splits["official"].counts == {"train": 12, "val": 6, "test": 6}
    reader = reader_for(manifest, ["fugc_u_0001"])
    assert reader.meta(0)["labeled"] is False
    assert not reader.has(0, "mask.png")


def test_fugc_as_released_for_the_challenge(tmp_path: Path):
    source = synth.write("fugc", tmp_path / "source", n=12, size=48)
    for part in ("val", "test"):
        shutil.rmtree(next(source.rglob(part)))
    manifest = prepare("fugc", [source], tmp_path / "fugc", allow_partial=True)
    assert list(manifest.splits) == sorted(RANDOM)
    assert "not comparable" in manifest.splits[RANDOM[0]].rule
