"""Images per second of one core, from shard or file to a uint8 batch for training: ours beside what else there is.

    python benchmarks/bench_data.py [--data IMAGEFOLDER] [--images 500] [--rounds 5] [--only photos|index|augment]

Every contender runs in this process, on one core, without loader workers, in turn within each round, so that a machine
whose speed drifts slows all alike. Seconds are those of the processor, which other programs do not lengthen; files are
in the page cache. Medians are printed, with ratios to timm's WebDataset reader and to decoding alone. Without --data,
photos are made: 256 to 500 px as in ImageNet, and 2000 x 1500 px as from a camera.

Then the index of a data set of ImageNet's size, loaded and handed to loader processes; and the time that the presets of
segmentation's augmentation take, beside nnU-Net's recipe in MONAI's transforms.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
import webdataset
from moto.server import ThreadedMotoServer
from PIL import Image
from timm.data import auto_augment, create_dataset, create_transform
from timm.data.loader import fast_collate
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from rwkvctl.config.specs.augment import PRESETS, ClassificationAugment, SegmentationAugment
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.feed import loader_processes, order, transforms
from rwkvctl.data.feed.loaders import TrainLoader
from rwkvctl.data.store import bucket, index, mapped
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.reader import Reader
from rwkvctl.data.store.schema import Shard
from rwkvctl.data.store.shards import ShardFiles

SIDE, BATCH = 224, 50
IMAGENET = 1_281_167
RECIPES = {"crop + flip": None, "crop + flip + RandAugment": "rand-m9-mstd0.5-inc1"}

Epoch = Callable[[], Iterable[Any]]


# Data ---------------------------------------------------------------------------------------------------------------


def photo(height: int, width: int, rng: np.random.Generator) -> bytes:
    """A JPEG with the spectrum of a photo: noise at every scale, the finer the weaker."""
    pixels = np.zeros((height, width, 3), np.float32)
    for octave in range(2, 10):
        grid = max(2, height >> (9 - octave)), max(2, width >> (9 - octave)), 3
        noise = rng.standard_normal(grid).astype(np.float32) / 1.3**octave
        pixels += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    pixels = (pixels - pixels.min()) / np.ptp(pixels) * 255
    return simplejpeg.encode_jpeg(pixels.astype(np.uint8), quality=92, colorsubsampling="420")


def write_photos(folder: Path, sizes: Iterable[tuple[int, int]]) -> Path:
    """An image folder in ten classes; its validation part is there because `prepare` wants one."""
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate([*sizes, *[(64, 64)] * 10]):
        part = "val" if (height, width) == (64, 64) else "train"
        path = folder / part / f"class{number % 10}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo(height, width, rng))
    return folder


def describe_for_timm(manifest: Manifest) -> None:
    """The `_info.json` that timm reads a folder of WebDataset shards by."""
    shards = [shard for shard in manifest.shards if shard.name.startswith("train")]
    entry = {
        "name": "train",
        "num_samples": sum(shard.n for shard in shards),
        "filenames": [shard.name for shard in shards],
        "shard_lengths": [shard.n for shard in shards],
    }
    (manifest.root / "_info.json").write_text(json.dumps({"splits": {"train": entry}}))


# Contenders ---------------------------------------------------------------------------------------------------------


def decoding(raw: Path) -> Epoch:
    """JPEG decoding alone, from memory, at full size."""
    files = [path.read_bytes() for path in sorted(raw.glob("train/*/*"))]
    return lambda: (([simplejpeg.decode_jpeg(data)],) for data in files)


def ours(manifest: Manifest, policy: str | None) -> Epoch:
    augment = ClassificationAugment(rand_augment=policy, color_jitter=0)
    loader = TrainLoader(
        manifest,
        split=None,
        image_size=SIDE,
        global_batch=BATCH,
        rank=0,
        world_size=1,
        seed=0,
        workers=0,
        augment=augment,
        tail="wrap",
    )
    epochs = itertools.count()
    return lambda: loader.epoch(next(epochs))


def timm_transform(policy: str | None) -> Any:
    return create_transform(
        SIDE, is_training=True, auto_augment=policy, color_jitter=None, interpolation="random", use_prefetcher=True
    )


def imagefolder(raw: Path, policy: str | None) -> Epoch:
    data = ImageFolder(str(raw / "train"), timm_transform(policy))
    return lambda: DataLoader(data, BATCH, shuffle=True, collate_fn=fast_collate)


def timm_reader(manifest: Manifest, policy: str | None) -> Epoch:
    data = create_dataset("wds/", root=str(manifest.root), split="train", is_training=True, batch_size=BATCH)
    data.transform = timm_transform(policy)
    return lambda: DataLoader(data, BATCH, collate_fn=fast_collate)


def plain_webdataset(manifest: Manifest, policy: str | None) -> Epoch:
    shards = [str(manifest.root / shard.name) for shard in manifest.shards if shard.name.startswith("train")]
    transform = timm_transform(policy)
    data = webdataset.WebDataset(shards, shardshuffle=False).shuffle(1000).decode("pil")
    data = data.to_tuple("jpg", "cls").map_tuple(transform, int)
    return lambda: DataLoader(data, BATCH, collate_fn=fast_collate)


def in_store(manifest: Manifest, uri: str, policy: str | None) -> Epoch:
    """Ours from an S3 server on this machine; the first epoch has put the shards into the cache."""
    bucket.upload(manifest.root, uri, overwrite=True)
    epoch = ours(Manifest.load(uri), policy)
    for _ in epoch():
        pass
    return epoch


# Measuring ----------------------------------------------------------------------------------------------------------


def rates(contenders: dict[str, Epoch], rounds: int) -> dict[str, float]:
    """Median images per second of processor time of each, one epoch a round, in turn."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, epoch in contenders.items():
            began = time.process_time()
            images = sum(len(batch[0]) for batch in epoch())  # timm's reader fills the last batch from a new pass
            found[name].append(images / (time.process_time() - began))
    return {name: statistics.median(values) for name, values in found.items()}


def compare(title: str, raw: Path, out: Path, rounds: int) -> None:
    """Print the table of one set of images, a block for each recipe."""
    manifest = prepare("imagefolder", [raw], out)
    describe_for_timm(manifest)
    files = sorted(raw.glob("train/*/*"))
    megabytes = sum(path.stat().st_size for path in files) / 1e6
    print(f"\n{title}: {len(files)} images, {megabytes * 1e3 / len(files):.0f} kB each, to {SIDE} px")
    for recipe, policy in RECIPES.items():
        found = rates(
            {
                "JPEG decoding alone": decoding(raw),
                "ours": ours(manifest, policy),
                "ours, S3, cache warm": in_store(manifest, f"s3://bench/{out.name}", policy),
                "torchvision ImageFolder, timm transform": imagefolder(raw, policy),
                "timm WebDataset reader": timm_reader(manifest, policy),
                "webdataset, timm transform": plain_webdataset(manifest, policy),
            },
            rounds,
        )
        print(f"\n{recipe:42} images/s  of timm's reader  of decoding")
        for name, rate in found.items():
            against = rate / found["timm WebDataset reader"], rate / found["JPEG decoding alone"]
            print(f"{name:42} {rate:8.0f}  {against[0]:14.2f} x  {against[1]:9.0%}")


def index_of_imagenet(folder: Path) -> None:
    """Seconds to load an index of ImageNet's size from its lines, and from the arrays in the cache."""

    def shard(number: int) -> bytes:
        keys = (f"in1k_n{k % 1000:08d}_{k}" for k in range(number * 1300, min(IMAGENET, (number + 1) * 1300)))
        place = {"cls": (512, 3, 7), "jpg": (1536, 110_000, 2**31), "json": (112_640, 400, 2**31)}
        return index.encode((key, place) for key in keys)

    lines = [(f"{number}.idx", shard(number), 1 << 30) for number in range(-(-IMAGENET // 1300))]
    began = time.process_time()
    loaded = index.load(lines)
    read = time.process_time() - began
    path = folder / "index.npy"
    mapped.keep(path, lambda: index.table(loaded))
    began = time.process_time()
    kept = mapped.find(path)
    restored = time.process_time() - began
    assert kept is not None
    print(f"\nindex of {IMAGENET} samples: from its lines {read:.1f} s, from the cache {restored:.2f} s")
    rows = np.random.default_rng(0).permutation(IMAGENET)
    print(f"{'given to 4 loader processes':42} bytes sent to each  MB of memory, all four together")
    for name, own in {"arrays, pickled": loaded, "a table in the cache, mapped": index.of_table(kept)}.items():
        sent, memory = handed_on(own, rows, folder)
        print(f"{name:42} {sent:18,}  {memory / 1e6:14.0f}")


def handed_on(own: index.Index, rows: np.ndarray, folder: Path, processes: int = 4) -> tuple[int, float]:
    """Bytes of a reader as a loader process gets it, and what it costs in memory (PSS: shared pages are divided)."""
    described = {"sha256": "0" * 64, "index_sha256": "0" * 64, "bytes": 1 << 30, "n": 1300, "first": "a", "last": "z"}
    shards = [Shard(name=f"train-{number:06d}.tar", **described) for number in range(-(-IMAGENET // 1300))]
    stand_in: Any = SimpleNamespace(
        index=own,
        shard_files=ShardFiles(folder, shards),
        kept_rows=lambda found: mapped.keep(folder / "rows.npy", lambda: found.astype(np.int32)),
    )
    reader = Reader(stand_in, rows)
    context = loader_processes.process_context()
    found = []
    for given in (None, reader):
        barrier, answers = context.Barrier(processes), context.Queue()
        crew = [context.Process(target=hold, args=(given, barrier, answers)) for _ in range(processes)]
        for process in crew:
            process.start()
        found.append(sum(answers.get() for _ in crew))
        for process in crew:
            process.join()
    return len(ForkingPickler.dumps(reader)), found[1] - found[0]


def hold(reader: Reader | None, barrier: Any, answers: Any) -> None:
    """A loader process that has looked up samples all over the data set; answers with its memory."""
    for row in range(0, len(reader) if reader else 0, 5):
        reader.has(row, "jpg")
    barrier.wait()
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    memory = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    barrier.wait()
    answers.put(memory)


def augmentations(rounds: int) -> None:
    """Milliseconds a sample of 224 x 224 px, resized already, on one core: each preset, and MONAI beside nnU-Net's."""
    rng = np.random.default_rng(0)
    mask = (cv2.resize(rng.random((7, 7), np.float32), (SIDE, SIDE)) > 0.5).astype(np.uint8)
    photo_pixels = simplejpeg.decode_jpeg(photo(SIDE, SIDE, rng))
    slices = {"rgb8": photo_pixels, "float": photo_pixels[..., 0].astype(np.float32) / 255}
    contenders: dict[str, Callable[[int], Any]] = {}
    for kind, image in slices.items():
        contenders[f"{kind}: none"] = partial(one_sample, None, image, mask)
        for preset in PRESETS:
            contenders[f"{kind}: {preset}"] = partial(one_sample, SegmentationAugment(preset=preset), image, mask)
        pair = {"image": image.transpose(2, 0, 1) if kind == "rgb8" else image[None], "mask": mask[None]}
        contenders[f"{kind}: nnunet's recipe in MONAI"] = partial(monai_sample, monai_recipe(), pair)
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, sample in contenders.items():
            began = time.process_time()
            for number in range(200):
                sample(number)
            found[name].append((time.process_time() - began) / 200 * 1e3)
    print(f"\n{'augmentation of a sample, 224 x 224':42} ms")
    for name, values in found.items():
        print(f"{name:42} {statistics.median(values):5.2f}")


def one_sample(augment: SegmentationAugment | None, image: np.ndarray, mask: np.ndarray, number: int) -> Any:
    transform = transforms.segmentation_train((SIDE, SIDE), augment)
    return transform(image, mask, order.sample_generator(0, 0, number))


def monai_sample(recipe: Any, pair: dict[str, np.ndarray], number: int) -> Any:
    return recipe(pair)


def monai_recipe() -> Any:
    """The same steps, probabilities and ranges, as far as MONAI has them."""
    from monai import transforms as monai

    both, image = ["image", "mask"], ["image"]
    recipe = monai.Compose(
        [
            monai.ToTensord(both, dtype=torch.float32),
            monai.RandRotated(both, np.pi, prob=0.2, mode=["bilinear", "nearest"], padding_mode="zeros"),
            monai.RandZoomd(both, prob=0.2, min_zoom=0.7, max_zoom=1.4, mode=["bilinear", "nearest"]),
            monai.RandGaussianNoised(image, prob=0.1, std=0.1),
            monai.RandGaussianSmoothd(image, (0.5, 1), (0.5, 1), prob=0.2),
            monai.RandScaleIntensityd(image, factors=0.25, prob=0.15),
            monai.RandAdjustContrastd(image, prob=0.15, gamma=(0.75, 1.25)),
            monai.RandSimulateLowResolutiond(image, prob=0.25, upsample_mode="bilinear", zoom_range=(0.5, 1)),
            monai.RandAdjustContrastd(image, prob=0.1, gamma=(0.7, 1.5), retain_stats=True, invert_image=True),
            monai.RandAdjustContrastd(image, prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
            monai.RandFlipd(both, prob=0.5, spatial_axis=0),
            monai.RandFlipd(both, prob=0.5, spatial_axis=1),
        ]
    )
    return recipe.set_random_state(0)


def posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """timm's own fails with Pillow 13 at its strongest level, 0 bits."""
    return timm_posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)


timm_posterize = auto_augment.posterize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="an image folder with train/ and val/, in place of photos made here")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["photos", "index", "augment"])
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    logging.disable(logging.WARNING)  # the server's lines
    auto_augment.NAME_TO_OP["PosterizeIncreasing"] = posterize
    print(f"one core, torch {torch.__version__}, OpenCV {cv2.__version__}, simplejpeg {simplejpeg.__version__}")
    with tempfile.TemporaryDirectory() as name:
        if options.only in (None, "photos"):
            photos(options, Path(name))
        if options.only in (None, "index"):
            index_of_imagenet(Path(name))
    if options.only in (None, "augment"):
        augmentations(options.rounds)


def photos(options: argparse.Namespace, folder: Path) -> None:
    """Both sizes of photos, or those of --data, beside an S3 server of this process."""
    os.environ |= {"RWKVCTL_HOME": f"{folder}/home", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    os.environ |= {"AWS_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port())}
    import s3fs

    s3fs.S3FileSystem().mkdir("bench")
    rng = np.random.default_rng(1)
    if options.data:
        compare(options.data.name, options.data, folder / "given", options.rounds)
    else:
        small = [(int(h), int(w)) for h, w in rng.integers(256, 501, (options.images, 2))]
        compare("as in ImageNet", write_photos(folder / "small", small), folder / "imagenet", options.rounds)
        large = [(1500, 2000)] * max(10, options.images // 10)  # one a class
        compare("2000 x 1500", write_photos(folder / "large", large), folder / "camera", options.rounds)
    server.stop()


if __name__ == "__main__":
    main()
