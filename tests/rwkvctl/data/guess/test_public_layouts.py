"""The layouts of well-known downloads: what `data doctor` makes of each by itself, and that its line converts them."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest

from rwkvctl.data.guess.doctor import examine
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.reader import Reader

from ...cli.test_data import run
from .public_trees import (
    Files,
    Layout,
    around,
    beside,
    classes,
    colours,
    cup_and_disc,
    depth,
    drawn,
    field,
    mask,
    objects,
    pair,
    palette,
    photo,
    text,
    third,
)

DRIVE = [
    *pair("training/images/{n}_training.tif", "training/1st_manual/{n}_manual1.gif", range(21, 27)),
    Files("training/mask/{n}_training_mask.gif", range(21, 27), field),
    *pair("test/images/{n:02d}_test.tif", "test/1st_manual/{n:02d}_manual1.gif", range(1, 5)),
    Files("test/2nd_manual/{n:02d}_manual2.gif", range(1, 5), mask),
    Files("test/mask/{n:02d}_test_mask.gif", range(1, 5), field),
]
REFUGE = [
    file
    for name, letter in (("Glaucoma", "g"), ("Non-Glaucoma", "n"))
    for file in pair(
        f"Training400/{name}/{letter}{{n:04d}}.jpg",
        f"Annotation-Training400/Disc_Cup_Masks/{name}/{letter}{{n:04d}}.bmp",
        range(1, 7),
        cup_and_disc,
    )
]
COVID = [
    file
    for part in ("Train", "Val", "Test")
    for name in ("COVID-19", "Normal")
    for top, n in ((f"{part}/{name}", f"{name.lower()}_{{n}}.png"),)
    for file in (
        Files(f"{top}/images/{n}", range(1, 5), photo),
        Files(f"{top}/lung masks/{n}", range(1, 5), around, of=f"{top}/images/{n}", layer=1),
        Files(f"{top}/infection masks/{n}", range(1, 5), mask, of=f"{top}/images/{n}", layer=2),
    )
]
CAMVID = [
    file
    for part in ("train", "val", "test")
    for file in pair(f"{part}/0001TP_{part}{{n:03d}}.png", f"{part}annot/0001TP_{part}{{n:03d}}.png", range(4))
]
CITYSCAPES = [
    file
    for part, city, frame in (("train", "aachen", 19), ("train", "jena", 19), ("val", "munster", 17))
    for name in (f"{part}/{city}/{city}_{{n:06d}}_{frame:06d}",)
    for file in (
        *pair(f"leftImg8bit/{name}_leftImg8bit.png", f"gtFine/{name}_gtFine_labelIds.png", range(4), classes),
        Files(f"gtFine/{name}_gtFine_color.png", range(4), colours),
        Files(f"gtFine/{name}_gtFine_instanceIds.png", range(4), objects),
        Files(f"gtFine/{name}_gtFine_polygons.json", range(4), text),
    )
]
POLYPS = [
    *pair("TrainDataset/image/{n}.png", "TrainDataset/mask/{n}.png", range(1, 13)),
    *[
        file
        for name in ("CVC-300", "CVC-ClinicDB", "ETIS")
        for file in pair(f"TestDataset/{name}/images/{{n}}.png", f"TestDataset/{name}/masks/{{n}}.png", range(3))
    ],
]
IDRID = [
    file
    for part, numbers in (("a. Training Set", range(1, 9)), ("b. Testing Set", range(55, 59)))
    for image in (f"A. Segmentation/1. Original Images/{part}/IDRiD_{{n:02d}}.jpg",)
    for top in (f"A. Segmentation/2. All Segmentation Groundtruths/{part}",)
    for file in (
        Files(image, numbers, photo),
        Files(f"{top}/1. Microaneurysms/IDRiD_{{n:02d}}_MA.tif", numbers, mask, image, layer=1),
        Files(f"{top}/4. Soft Exudates/IDRiD_{{n:02d}}_SE.tif", numbers[::3], third, image, layer=3),
        Files(f"{top}/5. Optic Disc/IDRiD_{{n:02d}}_OD.tif", numbers, beside, image, layer=2),
    )
]
PH2 = "PH2 Dataset images/IMD{n:03d}/IMD{n:03d}_"

LAYOUTS = {
    "DRIVE": Layout(
        DRIVE, "--images '*/images/*{_test,_training}' --masks '*/1st_manual/*_manual1' --split-from folders"
    ),
    "CHASEDB1": Layout(
        [
            *pair("Image_{n:02d}L.jpg", "Image_{n:02d}L_1stHO.png", range(1, 8), around),
            Files("Image_{n:02d}L_2ndHO.png", range(1, 8), around),
        ],
        "--images '*' --masks '*_{1stHO,2ndHO}' --annotator 1stHO",
        "masks of one thing are by several (1stHO, 2ndHO)",
    ),
    "STARE": Layout(
        [
            *pair("all-images/im{n:04d}.ppm", "labels-ah/im{n:04d}.ah.ppm", range(1, 8), around),
            Files("labels-vk/im{n:04d}.vk.ppm", range(1, 8), around),
        ],
        "--images 'all-images/*' --masks '{kind}/*.*.*' --annotator ah",
        "masks of one thing are by several (ah, vk)",
    ),
    "Montgomery": Layout(
        [
            Files("CXR_png/MCUCXR_{n:04d}_0.png", range(1, 9), photo),
            Files(
                "ManualMask/leftMask/MCUCXR_{n:04d}_0.png", range(1, 9), mask, "CXR_png/MCUCXR_{n:04d}_0.png", layer=1
            ),
            Files(
                "ManualMask/rightMask/MCUCXR_{n:04d}_0.png",
                range(1, 9),
                beside,
                "CXR_png/MCUCXR_{n:04d}_0.png",
                layer=2,
            ),
            Files("ClinicalReadings/MCUCXR_{n:04d}_0.txt", range(1, 9), text),
        ],
        "--images 'CXR_png/MCUCXR_*_0' --masks 'ManualMask/*/MCUCXR_*_0' --classes background,leftMask,rightMask",
        "each mask is of a class",
    ),
    "PH2": Layout(
        [
            *pair(f"{PH2}Dermoscopic_Image/IMD{{n:03d}}.bmp", f"{PH2}lesion/IMD{{n:03d}}_lesion.bmp", range(2, 9)),
            Files(f"{PH2}roi/IMD{{n:03d}}_R1_Label3.bmp", range(2, 9), mask),
            Files(f"{PH2}roi/IMD{{n:03d}}_R2_Label4.bmp", range(4, 6), mask),
        ],
        "--images 'PH2 Dataset images/IMD{a}/IMD{a}_Dermoscopic_Image/IMD{a}' "
        "--masks 'PH2 Dataset images/IMD{a}/IMD{a}_lesion/IMD{a}_lesion'",
        "masks could also be --masks 'PH2 Dataset images/IMD{a}/IMD{a}_roi/",
    ),
    "REFUGE": Layout(
        REFUGE,
        "--images 'Training400/*/*' --masks 'Annotation-Training400/Disc_Cup_Masks/*/*' "
        "--classes background=255,class1=0,class2=128",
        "white is around the edges of most masks and is taken for the background",
    ),
    "COVID-QU-Ex": Layout(
        COVID,
        "--images '*/*/images/*' --masks '*/*/{infection,lung} masks/*' --split-from folders "
        "--classes background,lung,infection",
        "is one wanted, --annotator infection",
    ),
    "CamVid": Layout(CAMVID, "--images '*/*' --masks '*annot/*' --split-from folders"),
    "Cityscapes": Layout(
        CITYSCAPES,
        "--images 'leftImg8bit/**/*_leftImg8bit' --masks 'gtFine/**/*_gtFine_labelIds' --split-from folders "
        "--classes background=0,class1=7,class2=8,class3=26",
        "masks could also be --masks 'gtFine/**/*_gtFine_color' or --masks 'gtFine/**/*_gtFine_instanceIds'",
    ),
    "Pascal VOC": Layout(
        [
            *pair("JPEGImages/2007_{n:06d}.jpg", "SegmentationClass/2007_{n:06d}.png", range(8), palette),
            Files("SegmentationObject/2007_{n:06d}.png", range(8), palette),
            Files("Annotations/2007_{n:06d}.xml", range(8), text),
        ],
        "--images 'JPEGImages/2007_*' --masks 'SegmentationClass/2007_*' --classes background,class1,class2",
        "masks could also be --masks 'SegmentationObject/2007_*'",
    ),
    "ISIC 2018": Layout(
        [
            *pair(
                "ISIC2018_Task1-2_Training_Input/ISIC_{n:07d}.jpg",
                "ISIC2018_Task1_Training_GroundTruth/ISIC_{n:07d}_segmentation.png",
                range(8),
            ),
            Files("ISIC2018_Task1-2_Training_Input/LICENSE{n}.txt", range(1), text),
        ],
        "--images 'ISIC2018_Task1-2_Training_Input/ISIC_*' "
        "--masks 'ISIC2018_Task1_Training_GroundTruth/ISIC_*_segmentation'",
    ),
    "colour and depth": Layout(
        [*pair("rgb/{n}.png", "masks/{n}.png", range(8)), Files("depth/{n}.png", range(8), depth)],
        "--images 'rgb/*' --masks 'masks/*'",
        "images could also be --images 'depth/*'; added as a second --images, it is further channels",
    ),
    "IDRiD": Layout(
        IDRID,
        "--images 'A. Segmentation/1. Original Images/*/IDRiD_*' "
        "--masks 'A. Segmentation/2. All Segmentation Groundtruths/*/{kind}/IDRiD_*_*' --split-from folders "
        "--classes background,MA,OD,SE",
        "each mask is of a class",
    ),
    "HAM10000": Layout(
        [
            file
            for part, numbers in ((1, range(24306, 24310)), (2, range(24310, 24314)))
            for file in pair(
                f"HAM10000_images_part_{part}/ISIC_{{n:07d}}.jpg",
                "HAM10000_segmentations_lesion_tschandl/ISIC_{n:07d}_segmentation.png",
                numbers,
            )
        ],
        "--images 'HAM10000_images_part_{n}/ISIC_*' "
        "--masks 'HAM10000_segmentations_lesion_tschandl/ISIC_*_segmentation'",
    ),
    "TN3K": Layout(
        [
            file
            for part in ("trainval", "test")
            for file in pair(f"{part}-image/{{n:04d}}.png", f"{part}-mask/{{n:04d}}.png", range(6))
        ],
        "--images '{split}-image/*' --masks '{split}-mask/*' --split-from folders",
    ),
    "polyp benchmark": Layout(
        POLYPS, "--images '**/{image,images}/*' --masks '**/{mask,masks}/*' --split-from folders"
    ),
    "Cell Tracking Challenge": Layout(
        [
            *[Files(f"{part}/t{{n:03d}}.tif", range(4), photo) for part in ("01", "02")],
            *[
                Files(f"{part}_GT/SEG/man_seg{{n:03d}}.tif", range(4), palette, of=f"{part}/t{{n:03d}}.tif")
                for part in ("01", "02")
            ],
            *[Files(f"{part}_GT/TRA/man_track{{n:03d}}.tif", range(4), palette) for part in ("01", "02")],
        ],
        "--images '*/t*' --masks '*_GT/SEG/man_seg*' --classes background,class1,class2",
        "masks could also be --masks '*_GT/TRA/man_track*'",
    ),
    "overlays": Layout(
        [
            *pair("IMG_{n:03d}.JPG", "IMG_{n:03d}_GT.png", range(8)),
            Files("IMG_{n:03d}_overlay.png", range(8), photo),
        ],
        "--images '*.JPG' --masks '*_GT'",
    ),
    "two cameras": Layout(
        [*pair("front/{n}.png", "labels/{n}.png", range(8)), Files("above/{n}.png", range(8), depth)],
        "--images 'front/*' --masks 'labels/*'",
        "images could also be --images 'above/*'",
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_well_known_layout(name: str, tmp_path: Path):
    layout, tree = LAYOUTS[name], tmp_path / name
    truth = drawn(layout, tree)
    (finding,) = examine([tree]).findings
    assert (finding.dataset, finding.problems) == ("pairs", [])
    assert (finding.options, finding.samples) == (layout.options, len(truth))
    assert layout.question in finding.question
    assert bool(layout.question) == bool(finding.question)
    words = shlex.split(run("doctor", tree).partition("  prepare  ")[2])
    run(*words[2:], "--out", tmp_path / "set")
    reader = Reader(Manifest.load(tmp_path / "set"))
    assert len(reader) == len(truth)
    for row in range(len(reader)):
        path = str(reader.meta(row)["orig_path"])
        (expected,) = (ids for name, ids in truth.items() if name.endswith(path))
        np.testing.assert_array_equal(reader.mask(row), expected, err_msg=path)


def test_photographs_in_folders_called_after_masks_stay_classes(tmp_path: Path):
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("with_mask", "without_mask"):
            (tmp_path / "tree" / part / name).mkdir(parents=True)
            for number in range(4):
                photo(rng, tmp_path / "tree" / part / name / f"{number}.jpg")
    assert [finding.dataset for finding in examine([tmp_path / "tree"]).findings] == ["imagefolder"]
