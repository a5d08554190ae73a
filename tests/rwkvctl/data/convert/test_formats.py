"""What each format accepts, and the line that it prints for what it does not."""

from __future__ import annotations

import json
import shutil
import tarfile
import unicodedata
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert.formats.folder import class_ids
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.images.masks import RawMask
from rwkvctl.data.store.case_reader import reader_for
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.reader import Reader


@pytest.fixture
def source(polyps: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(polyps, tmp_path / "source"))


def refused(tmp_path: Path, format_name: str, source: Path, match: str, **options) -> str:
    """The error of `prepare`, which must leave nothing but finished shards behind."""
    out = tmp_path / "out" / "set"
    with pytest.raises(UserError, match=match) as caught:
        prepare(format_name, [source], out, **options)
    assert not out.exists()
    assert not out.parent.exists() or {path.name for path in out.parent.iterdir()} <= {".set.partial"}
    return str(caught.value)


# folder


def test_folder_pairs_in_natural_order(binary: Manifest):
    keys = [key.decode() for key in binary.index.keys]
    assert keys == [f"binary_{n:04d}" for n in range(1, 21)]
    assert (binary.task, binary.image_kind, binary.channels) == ("segmentation", "rgb8", 3)
    assert binary.classes == ["background", "foreground"]
    assert binary.default_split == "random811_s41"


def test_folder_keeps_image_bytes_and_makes_masks_ids(binary: Manifest, polyps: Path):
    reader = reader_for(binary, ["binary_0007"])
    assert reader.read(0, "jpg") == (polyps / "images" / "7.jpg").read_bytes()
    stored = np.asarray(Image.open(polyps / "masks" / "7.png"))
    np.testing.assert_array_equal(reader.mask(0), (stored > 127).astype(np.uint8))
    assert reader.meta(0)["orig_size"] == [48, 48]


def test_folder_accepts_wrappers_suffixes_cases_and_litter(source: Path, tmp_path: Path):
    wrapped = tmp_path / "a" / "b" / "Kvasir"
    shutil.copytree(source, wrapped)
    (wrapped / "images").rename(wrapped / "Images")
    (wrapped / "Images" / "3.jpg").rename(wrapped / "Images" / "03.JPG")
    for mask in (wrapped / "masks").iterdir():
        mask.rename(mask.with_name(f"{mask.stem}_mask.png"))
    (wrapped / "Images" / "Thumbs.db").write_bytes(b"x")
    (wrapped / "Images" / "._1.jpg").write_bytes(b"x")
    (tmp_path / "a" / "__MACOSX").mkdir()
    manifest = prepare("folder", [tmp_path / "a"], tmp_path / "out")
    assert len(manifest.index) == 20
    assert set(manifest.splits) == {"random811_s41", "random811_s1029", "random811_s3407"}
    assert manifest.default_split == "random811_s41"


def test_folder_takes_jpeg_masks(source: Path, tmp_path: Path):
    for mask in sorted((source / "masks").iterdir()):
        Image.open(mask).convert("RGB").save(mask.with_suffix(".jpg"), quality=75)
        mask.unlink()
    manifest = prepare("folder", [source], tmp_path / "out")
    reader = Reader(manifest)
    assert set(np.unique(reader.mask(0))) == {0, 1}
    assert reader.meta(0)["mask_rule"] == "value > 127"


def test_folder_takes_named_classes(source: Path, tmp_path: Path):
    for mask in sorted((source / "masks").iterdir()):
        ids = (np.asarray(Image.open(mask)) > 127).astype(np.uint8)
        ids[:4] = 2
        Image.fromarray(ids).save(mask)
    manifest = prepare("folder", [source], tmp_path / "out", classes=["background", "polyp", "instrument"])
    assert set(np.unique(Reader(manifest).mask(3))) == {0, 1, 2}
    message = refused(tmp_path / "x", "folder", source, "mask values")
    assert "20 problems" in message
    assert "--classes" in message
    refused(tmp_path / "x", "folder", source, "names must be different", classes=["a", "a"])


def test_folder_unpaired(source: Path, tmp_path: Path):
    (source / "masks" / "3.png").unlink()
    assert "images/3.jpg: has no mask" in refused(tmp_path, "folder", source, "no mask")
    (source / "images" / "5.jpg").unlink()
    assert "2 problems" in refused(tmp_path, "folder", source, "masks/5.png: has no image")


def test_problems_are_counted_by_kind_with_three_examples_each(source: Path, tmp_path: Path):
    for n in range(1, 8):
        (source / "masks" / f"{n}.png").unlink()
    (source / "images" / "9.jpg").unlink()
    lines = refused(tmp_path, "folder", source, "8 problems of 2 kinds, nothing was written").splitlines()
    assert [line.partition("source/")[2].partition(";")[0] for line in lines[1:4]] == [
        f"images/{n}.jpg: has no mask" for n in (1, 2, 3)
    ]
    assert lines[4] == "  ... and 4 more like this, 7 in all"
    assert "masks/9.png: has no image" in lines[5]
    assert len(lines) == 6


def test_an_unpaired_file_tells_the_rule_and_a_mask(source: Path, tmp_path: Path):
    (source / "masks" / "3.png").rename(source / "masks" / "3_manual1.png")
    message = refused(tmp_path, "folder", source, "2 problems")
    assert (
        "images/3.jpg: has no mask; a mask is called like its image or with _mask, _segmentation, _gt, _label, -mask "
        "behind; a mask without an image is 3_manual1.png" in message
    )


def test_what_names_tell_is_said_before_anything_is_read(source: Path, tmp_path: Path):
    (source / "masks" / "3.png").unlink()
    (source / "images" / "9.jpg").write_bytes(b"\xff\xd8\xff broken")
    message = refused(tmp_path, "folder", source, "images/3.jpg: has no mask")
    assert "broken" not in message
    assert "\n" not in message


def test_folder_duplicate(source: Path, tmp_path: Path):
    shutil.copy(source / "images" / "3.jpg", source / "images" / "03.jpg")
    refused(tmp_path, "folder", source, r"same id as .*03?\.jpg")


def test_folder_wrong_size(source: Path, tmp_path: Path):
    Image.fromarray(np.zeros((48, 40), np.uint8)).save(source / "masks" / "4.png")
    message = refused(tmp_path, "folder", source, "is 40 x 48, its image 4.jpg is 48 x 48")
    assert "\n" not in message


def test_folder_takes_images_of_every_kind(source: Path, tmp_path: Path):
    """CMYK, 16 bits, an EXIF rotation, palette and one-bit masks, capital letters, spaces and umlauts."""
    pictures, masks = source / "images", source / "masks"
    rgb = Image.open(pictures / "1.jpg")
    rgb.convert("CMYK").save(pictures / "1.jpg")
    Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257).save(pictures / "2.png")
    (pictures / "2.jpg").unlink()
    turned = Image.Exif()
    turned[0x0112] = 6
    rgb.crop((0, 0, 48, 32)).save(pictures / "3.jpg", exif=turned)
    Image.open(masks / "3.png").crop((0, 0, 32, 48)).save(masks / "3.png")
    palette = Image.fromarray((np.asarray(Image.open(masks / "4.png")) > 0).astype(np.uint8), "L").convert("P")
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.save(masks / "4.png")
    Image.open(masks / "5.png").convert("1").save(masks / "5.PNG")
    (masks / "5.png").unlink()
    (pictures / "6.jpg").rename(pictures / "Fräulein Ü 6.JPG")
    (masks / "6.png").rename(masks / "Fräulein Ü 6.png")
    made = prepare("folder", [source], tmp_path / "set")
    reader = reader_for(made, ["set_0001", "set_0002", "set_0003", "set_0004", "set_0005", "set_fräulein_ü_6"])
    assert [reader.meta(row)["orig_mode"] for row in range(3)] == ["CMYK", "I;16", "RGB"]
    assert [reader.image(row).shape for row in (0, 1, 2)] == [(48, 48, 3), (48, 48, 3), (48, 32, 3)]
    assert all(set(np.unique(reader.mask(row))) == {0, 1} for row in range(6))
    assert "1 of 20 images: EXIF rotation applied" in made.content.warnings
    assert "1 of 20 images: scaled from 0..65535 to 8 bits" in made.content.warnings


PATIENTS = [
    "Müller",
    "Möller",
    "Иванов",
    "Петров",
    "王芳",
    "李芳",
    "काका",
    "काकी",
    "กำ",
    "กิ",
    "a+b",
    "a b",
    "x🙂",
    "x🙃",
]


def photographs(root: Path, names: list[str], rule=lambda name: name) -> dict[str, int]:
    """A grey image and a mask of as many rows for each name; the rows by name."""
    rows = {name: 4 + 2 * number for number, name in enumerate(names)}
    for name, count in rows.items():
        mask = np.zeros((48, 48), np.uint8)
        mask[:count] = 255
        noise = np.random.default_rng(count).integers(0, 200, (48, 48), np.uint8)
        noise[0] = count
        for path, pixels in ((root / "images" / f"{name}.png", noise), (root / "masks" / f"{rule(name)}.png", mask)):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return rows


def test_names_of_any_script_keep_their_letters(tmp_path: Path):
    """Every image has the mask of its own patient, under a key of its own; macOS writes the masks' names decomposed."""
    rows = photographs(tmp_path / "raw", PATIENTS, lambda name: unicodedata.normalize("NFD", name) + "_mask")
    made = prepare("folder", [tmp_path / "raw"], tmp_path / "set")
    reader = Reader(made)
    keys = [reader.key(row) for row in range(len(reader))]
    assert {"set_müller", "set_möller", "set_иванов", "set_王芳", "set_काका", "set_काकी", "set_กำ"} <= set(keys)
    assert len(set(keys)) == len(PATIENTS)
    for row in range(len(reader)):
        stem = Path(reader.meta(row)["orig_path"]).stem
        assert int(reader.image(row)[0, 0, 0]) == int(reader.mask(row).sum()) // 48 == rows[stem]
    lists = json.loads((made.root / "splits" / "random811_s41.json").read_text())
    assert sorted(lists["train"] + lists["val"] + lists["test"]) == sorted(keys)
    with tarfile.open(made.root / "all-000000.tar") as tar:
        assert {name.partition(".")[0] for name in tar.getnames()} == set(keys)


def test_two_patients_are_no_pair(tmp_path: Path):
    """Letters outside ASCII used to be lost, which made Müller's image and Möller's mask a pair."""
    photographs(tmp_path / "raw", ["Müller"], lambda _: "Möller")
    message = refused(tmp_path, "folder", tmp_path / "raw", "2 problems")
    assert "Müller.png: has no mask" in message
    assert "Möller.png: has no image" in message


@pytest.mark.parametrize(("folder", "twin"), [("masks", "3_gt.png"), ("masks", "03_mask.png"), ("images", "03.jpg")])
def test_pairing_never_guesses_between_two(source: Path, tmp_path: Path, folder: str, twin: str):
    own = source / folder / ("3.jpg" if folder == "images" else "3.png")
    if folder == "masks":
        own = own.rename(own.with_name("3_mask.png"))
    shutil.copy(own, source / folder / twin)
    message = refused(tmp_path, "folder", source, "has the same id as")
    assert twin in message
    assert own.name in message


def test_equal_names_in_two_patients_folders_are_no_pair(tmp_path: Path):
    photographs(tmp_path / "raw", ["p01/1", "p01/2", "p02/1", "p02/2", "p03/1", "p03/2"])
    made = prepare("folder", [tmp_path / "raw"], tmp_path / "set", ratio="1:1:1")
    assert [key.decode() for key in made.index.keys] == [f"set_p0{p}_{n}" for p in (1, 2, 3) for n in (1, 2)]
    (tmp_path / "raw" / "masks" / "p03" / "2.png").rename(tmp_path / "raw" / "masks" / "p02" / "3.png")
    message = refused(tmp_path, "folder", tmp_path / "raw", "images/p03/2.png: has no mask")
    assert "masks/p02/3.png: has no image" in message


def test_long_names_become_keys(tmp_path: Path):
    names = ["n" * 230 + str(n) for n in range(6)]
    photographs(tmp_path / "raw", names)
    made = prepare("folder", [tmp_path / "raw"], tmp_path / "set")
    assert len(set(made.index.keys)) == 6


def test_names_that_are_not_utf8_are_taken(source: Path, tmp_path: Path):
    for folder, end in (("images", "jpg"), ("masks", "png")):
        (source / folder / f"3.{end}").rename(source / folder / f"na\udcefve.{end}")
    made = prepare("folder", [source], tmp_path / "set")
    assert "set_na_xefve" in {key.decode() for key in made.index.keys}
    reader = reader_for(made, ["set_na_xefve"])
    assert reader.meta(0)["orig_path"] == "images/na\\xefve.jpg"
    (source / "masks" / "na\udcefve.png").unlink()
    assert "na\\xefve.jpg: has no mask" in refused(tmp_path, "folder", source, "no mask")


# --allow-partial


def test_allow_partial_leaves_faulty_samples_out(source: Path, tmp_path: Path):
    (source / "masks" / "1.png").unlink()
    (source / "images" / "2.jpg").unlink()
    (source / "images" / "3.jpg").write_bytes(b"\xff\xd8\xff broken")
    Image.fromarray(np.zeros((48, 40), np.uint8)).save(source / "masks" / "4.png")
    made = prepare("folder", [source], tmp_path / "set", allow_partial=True)
    assert [key.decode() for key in made.index.keys] == [f"set_{n:04d}" for n in range(5, 21)]
    why = {own.id: own.why for own in made.content.excluded}
    assert list(why) == ["images/1.jpg", "masks/2.png", "set_0003", "set_0004"]
    assert why["images/1.jpg"].startswith("has no mask; ")
    assert why["set_0003"].startswith("images/3.jpg: corrupt image")
    assert why["set_0004"] == "masks/4.png: is 40 x 48, its image 4.jpg is 48 x 48; give them one size"
    assert {"1 left out: has no mask", "1 left out: corrupt image"} <= set(made.content.warnings)
    again = prepare(
        "folder", [shutil.copytree(source, tmp_path / "elsewhere")], tmp_path / "b", name="set", allow_partial=True
    )
    assert again.fingerprint == made.fingerprint


def test_allow_partial_with_nothing_left(source: Path, tmp_path: Path):
    for image in (source / "images").iterdir():
        image.write_bytes(b"\xff\xd8\xff broken")
    refused(tmp_path, "folder", source, "no sample can be used; the first: images/1.jpg: corrupt", allow_partial=True)


# Files that are not what they seem


def retinas(root: Path, folders: dict[str, bool]) -> None:
    """`images/` and folders of masks: of the field of view, a little different each (True), or of vessels."""
    y, x = np.mgrid[:64, :64] - 32
    for n in range(8):
        rng = np.random.default_rng(n)
        disc = np.hypot(y, x) < 29 + rng.uniform(0, 0.4)
        folders_of = {"images": (rng.integers(40, 200, (64, 64)) * disc).astype(np.uint8)}
        for name, field in folders.items():
            folders_of[name] = (disc if field else disc & (rng.random((64, 64)) < 0.1)).astype(np.uint8) * 255
        for name, pixels in folders_of.items():
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / name / f"{n}.png")


def test_a_field_of_view_is_no_label(tmp_path: Path):
    retinas(tmp_path / "a", {"masks": True})
    message = refused(tmp_path, "folder", tmp_path / "a", "masks/ shows the same shape in all of 8 files")
    assert "a field of view, not labels; give the folder that holds the labels" in message
    assert "\n" not in message
    retinas(tmp_path / "b", {"masks": False})
    assert prepare("folder", [tmp_path / "b"], tmp_path / "set").content.counts["samples"] == 8


def test_a_folder_without_masks_tells_what_lies_beside_the_images(tmp_path: Path):
    retinas(tmp_path / "a" / "training", {"mask": True, "1st_manual": False})
    message = refused(tmp_path, "folder", tmp_path / "a", "no images/ and masks/ folders")
    assert "training/mask/ (the same shape in all of 8 files" in message
    assert "training/1st_manual/" in message
    assert message.endswith("call the folder of labels masks/")


def test_a_git_lfs_pointer_is_called_one(source: Path, tmp_path: Path):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12345\n"
    (source / "images" / "3.jpg").write_text(text)
    refused(tmp_path, "folder", source, r"images/3.jpg: is a Git LFS pointer, not the file itself; run git lfs pull")
    (source / "images" / "3.jpg").write_bytes(b"")
    refused(tmp_path, "folder", source, r"images/3.jpg: empty file")


# Small sets


@pytest.mark.parametrize(("n", "counts"), [(3, (1, 1, 1)), (4, (2, 1, 1)), (5, (3, 1, 1)), (6, (4, 1, 1))])
def test_every_part_of_a_small_set_has_a_sample(n: int, counts: tuple[int, int, int], tmp_path: Path):
    photographs(tmp_path / "raw", [str(i) for i in range(n)])
    made = prepare("folder", [tmp_path / "raw"], tmp_path / "set", seeds=[1])
    assert tuple(len(made.ids(None, part)) for part in ("train", "val", "test")) == counts


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_samples_for_the_ratio_leave_nothing_behind(n: int, tmp_path: Path):
    photographs(tmp_path / "raw", [str(i) for i in range(n)])
    message = refused(
        tmp_path, "folder", tmp_path / "raw", rf"a split by 8:1:1 needs at least 3 samples, there (is|are) {n}"
    )
    assert "\n" not in message
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("part", ["images/6.jpg", "masks/6.png"])
def test_folder_corrupt(source: Path, tmp_path: Path, part: str):
    path = source / part
    path.write_bytes(path.read_bytes()[:60])
    refused(tmp_path, "folder", source, f"{part}: corrupt image")


def test_folder_unknown_mask_values(source: Path, tmp_path: Path):
    mask = np.asarray(Image.open(source / "masks" / "2.png")).copy()
    mask[:5] = 7
    Image.fromarray(mask).save(source / "masks" / "2.png")
    message = refused(tmp_path, "folder", source, r"masks/2.png: mask values \{0: .*, 7: .*, 255: .*\}")
    assert "\n" not in message


@pytest.mark.parametrize("change", ["empty", "no masks folder", "absent", "file"])
def test_folder_without_a_source(source: Path, tmp_path: Path, change: str):
    if change == "empty":
        for path in [*source.glob("*/*")]:
            path.unlink()
        refused(tmp_path, "folder", source, "hold no images")
    elif change == "no masks folder":
        shutil.rmtree(source / "masks")
        refused(tmp_path, "folder", source, "no images/ and masks/ folders")
    elif change == "absent":
        refused(tmp_path, "folder", source / "nothing", "does not exist")
    else:
        refused(tmp_path, "folder", source / "images" / "1.jpg", "is not a folder and not an archive")


def test_links_out_of_the_source_are_not_followed(source: Path, tmp_path: Path):
    outside = tmp_path / "secret.png"
    Image.fromarray(np.zeros((48, 48), np.uint8)).save(outside)
    (source / "masks" / "1.png").unlink()
    (source / "masks" / "1.png").symlink_to(outside)
    refused(tmp_path, "folder", source, "1.jpg: has no mask")


def mask_of(values: np.ndarray, kind: str = "png") -> RawMask:
    return RawMask(values, "L", kind)  # type: ignore[arg-type]


def test_values_of_binary_masks():
    zeros = np.zeros((64, 64), np.uint8)
    for high in (1, 255):
        mask = zeros.copy()
        mask[:32] = high
        assert class_ids(mask_of(mask), 2)[0].mean() == 0.5
    blurred = zeros.copy()
    blurred[:30] = 255
    blurred[30] = np.arange(64) * 4  # an edge with 64 values, as JPEG or resampling leaves it
    assert class_ids(mask_of(blurred), 2)[0][:30].all()
    assert not class_ids(mask_of(zeros), 2)[0].any()


@pytest.mark.parametrize("values", [[0, 1, 2], [0, 128], [0, 1, 255], [0, 254], list(range(40))])
def test_values_that_are_no_binary_mask(values):
    mask = np.resize(np.array(values, np.uint8), (64, 64))
    with pytest.raises(ValueError, match="mask values"):
        class_ids(mask_of(mask), 2)


def test_a_grey_jpeg_is_no_binary_mask():
    with pytest.raises(ValueError, match="mask values"):
        class_ids(mask_of(np.full((8, 8), 100, np.uint8), "jpg"), 2)


def test_sixteen_bit_masks():
    assert class_ids(mask_of(np.array([[0, 1]], np.uint16)), 2)[0].dtype == np.uint8
    with pytest.raises(ValueError, match="mask values"):
        class_ids(mask_of(np.array([[0, 1000]], np.uint16)), 2)
    with pytest.raises(ValueError, match=r"must be 0\.\.2"):
        class_ids(mask_of(np.array([[0, 259]], np.uint16)), 3)


# acdc


@pytest.fixture
def acdc(hearts: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(hearts, tmp_path / "source"))


def edit(path: Path, **arrays: np.ndarray) -> None:
    with h5py.File(path, "r+") as file:
        for name, array in arrays.items():
            del file[name]
            file[name] = array


def test_acdc_slices_train_and_volumes_are_held_out(cardiac: Manifest, hearts: Path):
    train, val, test = (cardiac.ids(None, part) for part in ("train", "val", "test"))
    assert train[:4] == ["acdc_p031_f01_z00", "acdc_p031_f01_z01", "acdc_p031_f01_z02", "acdc_p031_f10_z00"]
    assert (val, test) == (["acdc_p021_f01", "acdc_p021_f10"], ["acdc_p001_f01", "acdc_p001_f10"])
    assert (cardiac.image_kind, cardiac.channels, len(cardiac.classes)) == ("float", 1, 4)
    assert "4 of 100 patients" in cardiac.content.warnings[0]
    reader = reader_for(cardiac, ["acdc_p001_f10", "acdc_p031_f01_z02"])
    with h5py.File(hearts / "ACDC_training_volumes" / "patient001_frame10.h5") as file:
        np.testing.assert_array_equal(reader.image(0), file["image"][()])
        np.testing.assert_array_equal(reader.mask(0), file["label"][()])
    assert reader.image(1).shape == (32, 32)
    assert reader.meta(1) | {"z": 2, "n_slices": 3, "patient_id": "patient031"} == reader.meta(1)


def test_acdc_missing_slice(acdc: Path, tmp_path: Path):
    (acdc / "ACDC_training_slices" / "patient032_frame01_slice_1.h5").unlink()
    assert "--allow-partial" in refused(tmp_path, "acdc", acdc, "1 of its 3 slices are missing, first slice_1")
    manifest = prepare("acdc", [acdc], tmp_path / "partial", allow_partial=True)
    assert any("slices are missing" in warning for warning in manifest.content.warnings)


def test_acdc_missing_frame_or_volume(acdc: Path, tmp_path: Path):
    (acdc / "ACDC_training_volumes" / "patient001_frame10.h5").unlink()
    refused(tmp_path, "acdc", acdc, "its volume patient001_frame10.h5 is missing")
    for z in range(3):
        (acdc / "ACDC_training_slices" / f"patient001_frame10_slice_{z}.h5").unlink()
    refused(tmp_path, "acdc", acdc, "patient001: 1 frames, 2 were expected")


def test_acdc_without_test_patients(acdc: Path, tmp_path: Path):
    for path in acdc.glob("*/patient001*"):
        path.unlink()
    manifest = prepare("acdc", [acdc], tmp_path / "out")
    with pytest.raises(UserError, match=r"no test samples, only train \(12\), val \(2\)"):
        manifest.ids(None, "test")


def test_acdc_bad_content(acdc: Path, tmp_path: Path):
    slices = acdc / "ACDC_training_slices"
    plane = np.zeros((32, 32), np.float32)
    edit(slices / "patient031_frame01_slice_0.h5", image=plane)
    edit(slices / "patient031_frame01_slice_1.h5", label=plane.astype(np.uint8) + 4)
    edit(slices / "patient031_frame01_slice_2.h5", image=plane + 9)
    (slices / "patient032_frame01_slice_0.h5").write_bytes(b"no h5")
    message = refused(tmp_path, "acdc", acdc, "4 problems")
    assert "slice_0.h5: differs from plane 0 of patient031_frame01.h5" in message
    assert "label values [4]" in message
    assert "image values 9..9" in message
    assert "not an h5 file" in message


def test_acdc_checks_slices_of_held_out_patients_too(acdc: Path, tmp_path: Path):
    edit(acdc / "ACDC_training_slices" / "patient001_frame01_slice_0.h5", image=np.zeros((32, 32), np.float32))
    refused(tmp_path, "acdc", acdc, "patient001_frame01_slice_0.h5: differs")


def test_acdc_nothing_found(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    refused(tmp_path, "acdc", tmp_path / "empty", "ACDC_training_slices")


# imagefolder


@pytest.fixture
def classes(textures: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(textures, tmp_path / "source"))


def test_imagefolder(classed: Manifest, textures: Path):
    assert classed.classes == ["texture_00", "texture_01", "texture_02"]
    assert classed.task == "classification"
    assert classed.splits["official"].counts == {"train": 30, "val": 6, "test": 6}
    assert classed.ids(None, "val") == classed.ids(None, "test")
    reader = reader_for(classed, classed.ids(None, "train"))
    labels = [reader.label(row) for row in range(len(reader))]
    assert sorted(labels) == [0] * 10 + [1] * 10 + [2] * 10
    assert labels != sorted(labels)  # shuffled once, for good
    meta = reader.meta(4)
    assert meta["class"] == classed.classes[labels[4]]
    assert reader.read(4, "jpg") == (textures / meta["orig_path"]).read_bytes()


def test_imagefolder_val_and_test(classes: Path, tmp_path: Path):
    shutil.copytree(classes / "val", classes / "test")
    manifest = prepare("imagefolder", [classes], tmp_path / "out")
    assert manifest.ids(None, "val") != manifest.ids(None, "test")
    (classes / "val").rename(classes / "other")
    only_test = prepare("imagefolder", [classes], tmp_path / "out2")
    assert only_test.ids(None, "val") == only_test.ids(None, "test")


def test_imagefolder_files_that_are_not_what_they_are_called(classes: Path, tmp_path: Path):
    path = classes / "train" / "texture_00" / "0000.jpg"
    Image.open(path).save(path, "PNG")
    Image.open(path).convert("L").save(classes / "train" / "texture_00" / "0001.jpg")
    manifest = prepare("imagefolder", [classes], tmp_path / "out")
    reader = Reader(manifest)
    assert sum(reader.has(row, "png") for row in range(len(reader))) == 1
    assert all(reader.image(row).shape == (32, 32, 3) for row in range(len(reader)))


def test_imagefolder_refuses(classes: Path, tmp_path: Path):
    bad = classes / "train" / "texture_01" / "0003.jpg"
    good = bad.read_bytes()
    bad.write_bytes(good[:300])
    refused(tmp_path, "imagefolder", classes, "texture_01/0003.jpg: corrupt image")
    bad.write_bytes(good)
    (classes / "val" / "texture_00").rename(classes / "val" / "unknown")
    refused(tmp_path, "imagefolder", classes, "train/ has no class 'unknown'")
    shutil.rmtree(classes / "val")
    for gone in ("texture_01", "texture_02"):
        shutil.rmtree(classes / "train" / gone)
    refused(tmp_path, "imagefolder", classes, "1 class folders in train/; at least two are needed")


def test_unknown_format(tmp_path: Path, polyps: Path):
    refused(tmp_path, "imagefoldr", polyps, "did you mean imagefolder")
