"""The synthetic trees have the names, encodings and oddities of the real downloads."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image
from scipy.io import loadmat

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import synth
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.convert.synth import imagenet, synapse
from rwkvctl.data.images import files as image_files

from ...cli.test_data import run

ALL = [f"{name}:{form}" for name, forms in synth.FORMS.items() for form in forms]


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return synth.write(request.param, tmp_path / "tree", n=6, size=32)


def of(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("tree", [name], indirect=True)


def stored(path: Path) -> tuple[str, str, np.ndarray]:
    """Kind, mode and pixels of an image file."""
    with Image.open(path) as image:
        return str(image.format), image.mode, np.asarray(image)


def modes(folder: Path, pattern: str) -> set[str]:
    return {stored(path)[1] for path in folder.rglob(pattern)}


@pytest.mark.parametrize("name", ALL)
def test_a_seed_always_gives_the_same_files(name: str, tmp_path: Path):
    made = [contents(synth.write(name, tmp_path / str(i), n=6, size=32, seed=seed)) for i, seed in enumerate((0, 0, 1))]
    assert made[0] == made[1] != made[2]
    assert name == "pairs:junk" or not list(tmp_path.glob("*/**/.*"))


@pytest.mark.parametrize("name", ALL)
def test_every_trap_names_the_file_that_it_spoiled(name: str, tmp_path: Path):
    clean = contents(synth.write(name, tmp_path / "clean", n=6, size=48))
    for trap, spoil in synth.all_traps(name.partition(":")[0]).items():
        folder = synth.write(name, tmp_path / trap, n=6, size=48)
        assert spoil(folder).is_relative_to(folder)
        assert contents(folder) != clean or trap == "link", trap


@of("busi")
def test_busi(tree: Path):
    root = tree / "Dataset_BUSI_with_GT"
    assert {path.name for path in root.iterdir()} == {"benign", "malignant", "normal"}
    names = {path.name for path in (root / "benign").iterdir()}
    assert {"benign (1).png", "benign (1)_mask.png", "benign (4)_mask_1.png"} <= names
    assert modes(root, "*mask*.png") == {"1", "L", "RGB", "RGBA"}
    assert modes(root, "*[0-9]).png") == {"RGB"}
    _, mode, pixels = stored(root / "normal" / "normal (1)_mask.png")
    assert mode == "RGB"
    assert not pixels.any()


@of("clinicdb:tif")
def test_clinicdb(tree: Path):
    root = tree / "CVC-ClinicDB"
    names = [sorted(path.name for path in (root / folder).iterdir()) for folder in ("Original", "Ground Truth")]
    assert names[0] == names[1]
    kind, mode, pixels = stored(root / "Original" / "26.tif")
    assert (kind, mode, pixels.shape) == ("TIFF", "RGB", (24, 32, 3))


@of("colondb:bmp")
def test_colondb(tree: Path):
    names = {path.name for path in (tree / "CVC-ColonDB").iterdir()}
    assert {"1.bmp", "p1.bmp", "c1.bmp"} <= names


@of("kvasir")
def test_kvasir(tree: Path):
    root = tree / "Kvasir-SEG"
    boxes = json.loads((root / "kavsir_bboxes.json").read_text())
    assert boxes.keys() == {path.stem for path in (root / "images").iterdir()}
    assert all(len(name) == 25 and name.startswith("cju") for name in boxes)
    assert modes(root / "masks", "*.jpg") == {"L", "RGB"}
    assert len(np.unique(stored(min((root / "masks").iterdir()))[2])) > 2  # JPEG blurs the edge


@of("isic2017")
def test_isic2017(tree: Path):
    assert len(list(tree.iterdir())) == 6
    training = {path.name for path in (tree / "ISIC-2017_Training_Data").iterdir()}
    assert {"ISIC_0000000.jpg", "ISIC_0000000_superpixels.png", "ISIC-2017_Training_Data_metadata.csv"} <= training
    mask = tree / "ISIC-2017_Test_v2_Part1_GroundTruth" / "ISIC_0016000_segmentation.png"
    assert set(np.unique(stored(mask)[2])) == {0, 255}


@of("glas")
def test_glas(tree: Path):
    root = tree / "Warwick QU Dataset (Released 2016_07_08)"
    header, first, *_ = (root / "Grade.csv").read_text().splitlines()
    assert header == "name, patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)"
    assert first.startswith("testA_1, ")
    kind, mode, instances = stored(root / "train_1_anno.bmp")
    assert (kind, mode) == ("BMP", "L")
    assert np.unique(instances).tolist() == list(range(instances.max() + 1))


@of("goals:public")
def test_goals(tree: Path):
    numbers = {path.stem for path in tree.rglob("Image/*.png")}
    assert numbers == {"0001", "0002", "0003", "0004", "0005", "0101", "0201"}
    masks = list(tree.rglob("Layer_Masks/*.png"))
    assert {path.stem for path in masks} == {"0001", "0002", "0003", "0004", "0005"}
    assert set(np.unique(stored(masks[0])[2])) == {0, 80, 160, 255}


@of("psvfm")
def test_psvfm(tree: Path):
    clip = tree / "Fetoscopy Placenta Dataset" / "Vessel_segmentation_annotations" / "video04"
    assert [path.name for path in (clip / "masks_gt").iterdir()] == ["anon005_00100_mask.png"]
    assert modes(clip / "masks_gt", "*.png") == {"RGB"}
    assert list(tree.rglob("masks_predicted/*.png"))


@of("fugc")
def test_fugc(tree: Path):
    root = tree / "FUGC (Dataset)" / "dataset"
    assert (root / "train" / "labeled_data" / "images" / "0001.png").exists()
    assert len(list((root / "train" / "unlabeled_data" / "images").iterdir())) == 12
    _, mode, label = stored(root / "train" / "labeled_data" / "labels" / "0001.png")
    assert (mode, set(np.unique(label))) == ("L", {0, 1, 2})


@of("acdc:nifti")
def test_acdc(tree: Path):
    patient = tree / "database" / "training" / "patient031"
    info = dict(line.split(": ") for line in (patient / "Info.cfg").read_text().splitlines())
    frame = nibabel.load(patient / f"patient031_frame{int(info['ES']):02d}.nii.gz")
    truth = nibabel.load(patient / f"patient031_frame{int(info['ES']):02d}_gt.nii.gz")
    cine = nibabel.load(patient / "patient031_4d.nii.gz")
    assert (frame.shape, cine.shape[3]) == ((32, 32, 4), int(info["NbFrame"]))
    assert (frame.get_data_dtype(), truth.get_data_dtype()) == (np.int16, np.uint8)
    assert frame.header.get_zooms() == truth.header.get_zooms() != (1, 1, 1)


@of("synapse:transunet")
def test_synapse_preprocessed(tree: Path):
    root = tree / "Synapse"
    lists = root / "lists" / "lists_Synapse"
    assert b"\r\n" in (lists / "train.txt").read_bytes()
    assert not (lists / "train.txt").read_bytes().endswith(b"\n")
    names = (lists / "train.txt").read_text().splitlines()
    assert sorted(names) == sorted(path.stem for path in (root / "train_npz").iterdir())
    with h5py.File(root / "test_vol_h5" / "case0008.npy.h5") as file:
        assert file["image"].shape == file["label"].shape == (10, 32, 32)
        assert (file["image"][()].min(), file["image"][()].max()) == (0, 1)
        volume = np.bincount(file["label"][()].astype(int).ravel(), minlength=9)
    assert volume[1:].argmax() + 1 == 5  # the liver is the largest organ,
    assert volume[7] > volume[1]  # the spleen larger than the aorta


def test_synapse_raw_becomes_the_preprocessed(tmp_path: Path):
    raw = synth.write("synapse:nifti", tmp_path / "raw", n=6, size=32) / "RawData"
    made = synth.write("synapse:transunet", tmp_path / "made", n=6, size=32) / "Synapse"
    image = nibabel.load(raw / "Training" / "img" / "img0005.nii.gz")
    label = nibabel.load(raw / "Training" / "label" / "label0005.nii.gz")
    assert image.get_data_dtype() == np.int16
    assert not np.allclose(image.affine[:3, :3], np.eye(3))
    hounsfield, truth = (np.asarray(x.dataobj).transpose(2, 0, 1)[:, :, ::-1] for x in (image, label))
    assert hounsfield.min() < -125
    assert hounsfield.max() > 275
    assert truth.max() == 13
    case = np.load(made / "train_npz" / "case0005_slice004.npz")
    np.testing.assert_allclose(case["image"], (np.clip(hounsfield[4], -125, 275) + 125) / 400, atol=1e-6)
    mapped = np.array([synapse.TRANSUNET.get(organ, 0) for organ in range(14)])[truth[4]]
    np.testing.assert_array_equal(case["label"], mapped)
    assert not (raw / "Testing" / "label").exists()


@of("imagenet:tars")
def test_imagenet_tars(tree: Path):
    with (
        tarfile.open(tree / "ILSVRC2012_img_train.tar") as outer,
        tarfile.open(fileobj=outer.extractfile("n01440764.tar")) as inner,
    ):
        photos = {member.name: inner.extractfile(member).read() for member in inner}
    assert all(name.startswith("n01440764_") and name.endswith(".JPEG") for name in photos)
    assert {image_files.sniff(data) for data in photos.values()} == {"jpg", "png"}
    with tarfile.open(tree / "ILSVRC2012_img_val.tar") as val:
        names = val.getnames()
    with tarfile.open(tree / "ILSVRC2012_devkit_t12.tar.gz") as devkit:
        folder = "ILSVRC2012_devkit_t12/data"
        truth = devkit.extractfile(f"{folder}/ILSVRC2012_validation_ground_truth.txt").read().split()
        meta = loadmat(io.BytesIO(devkit.extractfile(f"{folder}/meta.mat").read()), squeeze_me=True)["synsets"]
    assert names[0] == "ILSVRC2012_val_00000001.JPEG"
    assert len(truth) == len(names)
    wnids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in meta}
    assert list(wnids)[-1] > 1000
    assert [wnids[number] for number in (1, 2, 3, 4)] != sorted(wnids[number] for number in (1, 2, 3, 4))


@of("imagenet:folder")
def test_imagenet_colours(tree: Path):
    assert modes(tree / "train", "*.JPEG") == {"RGB", "L", "CMYK"}


@of("imagenet:parquet")
def test_imagenet_parquet(tree: Path):
    table = pyarrow.parquet.read_table(tree / "data" / "train-00000-of-00002.parquet")
    assert str(table.schema.field("image").type) == "struct<bytes: binary, path: string>"
    rows = table.to_pylist()
    wnids = sorted(imagenet.CLASSES)
    assert all(row["image"]["path"].endswith(f"_{wnids[row['label']]}.JPEG") for row in rows)
    test = pyarrow.parquet.read_table(tree / "data" / "test-00000-of-00001.parquet")
    assert set(test["label"].to_pylist()) == {-1}


@of("imagenet:timm")
def test_imagenet_timm(tree: Path):
    splits = json.loads((tree / "_info.json").read_text())["splits"]
    for split in splits.values():
        for name, length in zip(split["filenames"], split["shard_lengths"], strict=True):
            with tarfile.open(tree / name) as shard:
                members = shard.getnames()
            assert len(members) == 3 * length
            assert [member.split(".")[1] for member in members[:3]] == ["cls", "jpg", "json"]


@of("nnunet:volumes")
def test_nnunet(tree: Path):
    root = tree / "Dataset042_Hearts"
    content = json.loads((root / "dataset.json").read_text())
    cases = {path.name.removesuffix(content["file_ending"]) for path in (root / "labelsTr").iterdir()}
    assert len(cases) == content["numTraining"]
    assert {f"{case}_0000.nii.gz" for case in cases} == {path.name for path in (root / "imagesTr").iterdir()}


def test_command(tmp_path: Path):
    printed = run("synth", "busi", "--out", tmp_path / "busi", "--n", 6, "--size", 32, "--trap", "litter")
    assert f"rwkvctl data prepare busi --source {tmp_path / 'busi'}" in printed
    assert (tmp_path / "busi" / "__MACOSX").is_dir()
    forms = run("synth", "--help")
    words = "".join(forms.replace("│", "").split())  # without the box around them
    for name, choices in synth.FORMS.items():
        assert f"{name}:{'|'.join(choices)}" in words


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["bussi"], "data set 'bussi' is unknown; did you mean busi"),
        (["acdc:nift"], "form of acdc 'nift' is unknown; did you mean nifti"),
        (["busi", "--trap", "xyz"], "trap of busi 'xyz' is unknown; choose from size, "),
        (["busi", "--n", 5], "give 6 to 100 samples of 32 to 512 pixels"),
    ],
)
def test_mistakes(arguments: list[object], match: str, tmp_path: Path):
    with pytest.raises(UserError, match=match):
        run("synth", *arguments, "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_other_folders_are_left_alone(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(UserError, match="exists and is not empty"):
        synth.write("busi", tmp_path)


VOLUMES = [tree for tree in ALL if tree.startswith(("acdc", "synapse", "nnunet:volumes"))]


@pytest.mark.parametrize("name", VOLUMES)
def test_a_damaged_volume_is_a_problem_once(name: str, tmp_path: Path):
    source = synth.write(name, tmp_path / "source", n=6, size=32, traps=["truncated"])
    try:
        made = prepare(name.partition(":")[0], [source], tmp_path / "out", allow_partial=True)
    except UserError as error:
        lines = [text for text in str(error).splitlines() if "replace it" in text or "download it again" in text]
    else:
        lines = [own.id for own in made.content.excluded]
    assert len(lines) == len(set(lines)) > 0
