"""ImageNet-1K as people have it: nested tars, folders, Kaggle's folders, parquet, timm's shards.

The first four classes of the thousand, so that their numbers are those of the whole set. Like the original, the images
hold a PNG that is called .JPEG, a CMYK and a grey JPEG.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from rwkvctl.data.convert.synth.output import encode, tar_of, write
from rwkvctl.data.convert.synth.phantom import texture

CLASSES = {
    "n01440764": "tench, Tinca tinca",
    "n01443537": "goldfish, Carassius auratus",
    "n01484850": "great white shark, white shark, man-eater, man-eating shark, Carcharodon carcharias",
    "n01491361": "tiger shark, Galeocerdo cuvieri",
}
ILSVRC_IDS = {"n01440764": 3, "n01443537": 1, "n01484850": 4, "n01491361": 2}
"""The devkit counts in another order, and lists inner nodes of the tree behind the classes."""
INNER_NODE = (1001, "n01317541")


class Photo(NamedTuple):
    """An image file of a part."""

    wnid: str
    name: str
    data: bytes


def write_tars(folder: Path, n: int, size: int, seed: int) -> None:
    """`ILSVRC2012_img_train.tar` of tars, flat `ILSVRC2012_img_val.tar`, `ILSVRC2012_devkit_t12.tar.gz`."""
    inner: dict[str, dict[str, bytes]] = {wnid: {} for wnid in CLASSES}
    for photo in _train(n, size, seed):
        inner[photo.wnid][photo.name] = photo.data
    write(folder / "ILSVRC2012_img_train.tar", tar_of({f"{wnid}.tar": tar_of(files) for wnid, files in inner.items()}))
    val = list(_val(n, size, seed))
    write(folder / "ILSVRC2012_img_val.tar", tar_of({photo.name: photo.data for photo in val}))
    truth = "".join(f"{ILSVRC_IDS[photo.wnid]}\n" for photo in val).encode()
    root = "ILSVRC2012_devkit_t12/data"
    devkit = {f"{root}/meta.mat": _meta(), f"{root}/ILSVRC2012_validation_ground_truth.txt": truth}
    write(folder / "ILSVRC2012_devkit_t12.tar.gz", tar_of(devkit, "gz"))


def write_folder(folder: Path, n: int, size: int, seed: int) -> None:
    """`train/<wnid>/*.JPEG` and `val/<wnid>/*.JPEG`."""
    for part, photos in (("train", _train(n, size, seed)), ("val", _val(n, size, seed))):
        for photo in photos:
            write(folder / part / photo.wnid / photo.name, photo.data)


def write_kaggle(folder: Path, n: int, size: int, seed: int) -> None:
    """`ILSVRC/Data/CLS-LOC/{train,val}` with a flat val/, `LOC_val_solution.csv`, `LOC_synset_mapping.txt`."""
    root = folder / "ILSVRC" / "Data" / "CLS-LOC"
    for photo in _train(n, size, seed):
        write(root / "train" / photo.wnid / photo.name, photo.data)
    rows = ["ImageId,PredictionString"]
    for photo in _val(n, size, seed):
        write(root / "val" / photo.name, photo.data)
        rows.append(f"{Path(photo.name).stem},{photo.wnid} 4 4 {size - 4} {size - 4} ")
    write(folder / "LOC_val_solution.csv", "\n".join(rows) + "\n")
    write(folder / "LOC_synset_mapping.txt", "".join(f"{wnid} {words}\n" for wnid, words in CLASSES.items()))


def write_parquet(folder: Path, n: int, size: int, seed: int) -> None:
    """`data/{train,validation,test}-*.parquet`: columns `image` (bytes, path) and `label`, which is -1 for test."""
    import pyarrow
    import pyarrow.parquet

    image_type = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema([("image", image_type), ("label", pyarrow.int64())])
    order = list(CLASSES)
    train, val = list(_train(n, size, seed)), list(_val(n, size, seed))
    files = {"train-00000-of-00002": train[::2], "train-00001-of-00002": train[1::2], "validation-00000-of-00001": val}
    files["test-00000-of-00001"] = val[:2]
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for name, photos in files.items():
        test = name.startswith("test")
        paths = [f"ILSVRC2012_test_{i:08d}.JPEG" if test else _hub_name(photo) for i, photo in enumerate(photos, 1)]
        images = [{"bytes": photo.data, "path": path} for photo, path in zip(photos, paths, strict=True)]
        labels = [-1 if test else order.index(photo.wnid) for photo in photos]
        table = pyarrow.table({"image": images, "label": labels}, schema=schema)
        pyarrow.parquet.write_table(table, folder / "data" / f"{name}.parquet", row_group_size=8)


def _hub_name(photo: Photo) -> str:
    """`n01440764_10026_n01440764.JPEG`: the hub's files carry their wnid at the end."""
    return f"{Path(photo.name).stem}_{photo.wnid}.JPEG"


def write_timm(folder: Path, n: int, size: int, seed: int) -> None:
    """`imagenet1k-train-0000.tar` ..., `imagenet1k-validation-00.tar` and `_info.json`, shuffled like timm's."""
    order = list(CLASSES)
    train, val = list(_train(n, size, seed)), list(_val(n, size, seed))
    np.random.default_rng(seed).shuffle(train)
    splits = {"train": ([train[::2], train[1::2]], 4), "validation": ([val], 2)}
    info: dict[str, dict[str, object]] = {}
    for split, (shards, digits) in splits.items():
        names = [f"imagenet1k-{split}-{number:0{digits}d}.tar" for number in range(len(shards))]
        for name, photos in zip(names, shards, strict=True):
            files: dict[str, bytes] = {}
            for photo in photos:
                key, label = Path(photo.name).stem, order.index(photo.wnid)
                described = {"filename": photo.name, "label": label, "width": size, "height": size}
                files[f"{key}.cls"] = str(label).encode()
                files[f"{key}.jpg"] = photo.data
                files[f"{key}.json"] = json.dumps(described).encode()
            write(folder / name, tar_of(files))
        lengths = [len(photos) for photos in shards]
        info[split] = {"name": split, "filenames": names, "shard_lengths": lengths, "num_samples": sum(lengths)}
    write(folder / "_info.json", json.dumps({"splits": info}, indent=4))


def _train(n: int, size: int, seed: int) -> Iterator[Photo]:
    """A quarter of `n` images a class, at least 3."""
    for label, wnid in enumerate(CLASSES):
        for number in range(max(3, n // len(CLASSES))):
            pixels = texture(np.random.default_rng([seed, 12, label, number]), label, len(CLASSES), size)
            yield Photo(wnid, f"{wnid}_{number * 37 + 18}.JPEG", _encode(pixels, (label, number)))


def _val(n: int, size: int, seed: int) -> Iterator[Photo]:
    """Images in mixed order of class, equally many of each."""
    labels = np.random.default_rng([seed, 13]).permutation(np.repeat(range(len(CLASSES)), max(2, n // 12)))
    for number, label in enumerate(labels.tolist(), 1):
        pixels = texture(np.random.default_rng([seed, 14, number]), label, len(CLASSES), size)
        yield Photo(list(CLASSES)[label], f"ILSVRC2012_val_{number:08d}.JPEG", _encode(pixels, None))


def _encode(pixels: np.ndarray, which: tuple[int, int] | None) -> bytes:
    if which == (0, 0):
        return encode(pixels, "PNG")
    if which == (1, 0):
        return encode(pixels[..., 0], "JPEG", quality=92)
    if which == (2, 0):
        buffer = io.BytesIO()
        Image.fromarray(pixels).convert("CMYK").save(buffer, "JPEG", quality=92)
        return buffer.getvalue()
    return encode(pixels, "JPEG", quality=92)


def _meta() -> bytes:
    """The devkit's `meta.mat`: a struct array `synsets`."""
    from scipy.io import savemat

    rows = [*sorted((number, wnid) for wnid, number in ILSVRC_IDS.items()), INNER_NODE]
    fields = ["ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height"]
    synsets = np.zeros((len(rows), 1), dtype=[(field, object) for field in [*fields, "num_train_images"]])
    for row, (number, wnid) in enumerate(rows):
        leaf = number <= 1000
        children = [] if leaf else list(range(1, len(CLASSES) + 1))
        words = CLASSES.get(wnid, "domestic animal")
        synsets[row, 0] = (
            float(number), wnid, words, words, float(len(children)), np.array(children, float), float(not leaf), 3.0,
        )  # fmt: skip
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": synsets})
    return b"MATLAB 5.0 MAT-file".ljust(116) + buffer.getvalue()[116:]  # without the time of day
