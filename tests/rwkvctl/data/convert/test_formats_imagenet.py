"""ImageNet in all the forms in which people have it, on synthetic downloads."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import synth
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.images import files as image_files
from rwkvctl.data.store.case_reader import reader_for
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.reader import Reader
from rwkvctl.data.store.verify import verify

FORMS = ("tars", "folder", "kaggle", "parquet", "timm")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("raw")
    return {form: synth.write(f"imagenet:{form}", root / form, n=12, size=32) for form in FORMS}


@pytest.fixture(scope="module")
def prepared(raw, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Manifest]:
    root = tmp_path_factory.mktemp("shards")
    return {form: prepare("imagenet", [raw[form]], root / form, name="in1k", allow_partial=True) for form in FORMS}


def labels_by_key(manifest: Manifest) -> dict[str, tuple[int, str]]:
    reader = Reader(manifest)
    pixels = (
        image_files.decode_rgb(reader.read(row, "jpg" if reader.has(row, "jpg") else "png"))
        for row in range(len(reader))
    )
    return {
        reader.key(row).lower().replace("ilsvrc2012_", "in1k_").replace("in1k_n", "n").replace("n0", "in1k_n0", 1): (
            reader.label(row),
            picture.tobytes().hex()[:64],
        )
        for row, picture in enumerate(pixels)
    }


def test_every_form_gives_the_same_images_and_classes(prepared):
    expected = labels_by_key(prepared["folder"])
    assert len(expected) == 12 + 8
    for form in FORMS:
        assert labels_by_key(prepared[form]) == expected
        assert verify(prepared[form].root, deep=True).problems == []
    wnids = prepared["tars"].classes
    assert (len(wnids), wnids[:2], wnids[999]) == (1000, ["n01440764", "n01443537"], "n15075141")


def test_train_is_shuffled_once_and_val_is_not(prepared):
    for form in ("tars", "folder", "kaggle"):
        train, val = prepared[form].ids(None, "train"), prepared[form].ids(None, "val")
        assert train == prepared["folder"].ids(None, "train")
        assert train != sorted(train)
        assert val == [f"in1k_val_{n:08d}" for n in range(1, 9)]


def test_what_is_called_jpeg_is_not_always_one(prepared):
    reader = Reader(prepared["tars"])
    kinds = [(reader.has(row, "png"), reader.meta(row)["orig_mode"]) for row in range(len(reader))]
    assert kinds.count((True, "RGB")) == 1
    assert {mode for _, mode in kinds} == {"RGB", "L", "CMYK"}
    assert all(reader.image(row).shape == (32, 32, 3) for row in range(len(reader)))


def test_timm_shards_are_taken_over_byte_for_byte(prepared, raw):
    for shard in prepared["timm"].shards:
        assert (Path(prepared["timm"].root) / shard.name).read_bytes() == (raw["timm"] / shard.name).read_bytes()
    assert prepared["timm"].shards[0].name == "imagenet1k-train-0000.tar"


def refused(source: Path | list[Path], tmp_path: Path, match: str, **options) -> None:
    sources = source if isinstance(source, list) else [source]
    with pytest.raises(UserError, match=match):
        prepare("imagenet", sources, tmp_path / "refused", **{"allow_partial": True, **options})


@pytest.fixture
def source(raw, tmp_path: Path):
    return lambda form: Path(shutil.copytree(raw[form], tmp_path / "source"))


def test_counts(raw, tmp_path: Path):
    refused(raw["parquet"], tmp_path, "12 train, 1281167 were expected", allow_partial=False)


def test_tars_need_the_devkit(source, tmp_path: Path):
    tree = source("tars")
    devkit = tree / "ILSVRC2012_devkit_t12.tar.gz"
    kept = devkit.rename(tmp_path / devkit.name)
    refused(tree, tmp_path, "val is flat and nothing says its classes; add ILSVRC2012_devkit_t12.tar.gz")
    parts = [tree / "ILSVRC2012_img_train.tar", tree / "ILSVRC2012_img_val.tar", kept]
    assert len(prepare("imagenet", parts, tmp_path / "out", allow_partial=True).index) == 20


def test_a_truncated_train_tar(source, tmp_path: Path):
    path = source("tars") / "ILSVRC2012_img_train.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(path.parent, tmp_path, r"ILSVRC2012_img_train.tar: cannot be read as an archive")


def test_photos_in_the_wrong_place(source, tmp_path: Path):
    tree = source("folder")
    photo = next((tree / "train" / "n01440764").iterdir())
    photo.rename(tree / "train" / "n01443537" / photo.name)
    refused(tree, tmp_path, "lies in the folder of n01443537; move it to that of n01440764")
    (tree / "train" / "n99999999").mkdir()
    shutil.copy(tree / "train" / "n01443537" / photo.name, tree / "train" / "n99999999" / "n99999999_1.JPEG")
    refused(tree, tmp_path, "n99999999 is not one of the thousand classes")


def test_parquet_that_is_wrong(source, tmp_path: Path):
    tree = source("parquet")
    path = tree / "data" / "validation-00000-of-00001.parquet"
    table = pyarrow.parquet.read_table(path)
    wrong = table.set_column(1, "label", [np.zeros(len(table), np.int64)])
    pyarrow.parquet.write_table(wrong, path)
    refused(tree, tmp_path, r"validation-00000-of-00001.parquet: row \d of group 0: label 0 and file .* disagree")
    path.write_bytes(path.read_bytes()[:-50])
    refused(tree, tmp_path, r"not a parquet file with image and label .*; download it again")


def test_timm_shards_that_are_wrong(source, tmp_path: Path):
    tree = source("timm")
    path = tree / "imagenet1k-validation-00.tar"
    content = path.read_bytes()
    label = content.index(b".cls") // 512 * 512 + 512
    path.write_bytes(content[:label] + b"x" + content[label + 1 :])
    refused(tree, tmp_path, r"validation-00.tar!/.*cls: is not a class number")
    with tarfile.open(path, "a") as tar:
        member = tarfile.TarInfo("a.pickle")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
    refused(tree, tmp_path, r"a.pickle: does not belong in a shard")


def test_nothing_like_it(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", tmp_path, "no ImageNet here")


def test_reading_by_split(prepared):
    made = prepared["parquet"]
    reader = reader_for(made, made.ids(None, "val"))
    assert [reader.key(0), reader.meta(0)["class"]] == ["in1k_val_00000001", made.classes[reader.label(0)]]
