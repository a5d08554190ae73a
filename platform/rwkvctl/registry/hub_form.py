"""A model folder in the form of the Hugging Face hub.

model.safetensors   the weights, byte for byte those of the model folder
config.json         what `RWKVUNet.from_pretrained`, or timm's `local-dir:`, builds the network from
README.md           the card, with the YAML head that the hub reads
model.json          all that rwkvctl needs beside it: classes, image size, intensity rule, and the weights' SHA-256

It is a model folder too: `rwkvctl predict FOLDER IMAGES` takes it as it is.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkvctl.base.errors import UserError
from rwkvctl.base.files import write_bytes, write_json
from rwkvctl.base.uris import mask
from rwkvctl.models import bundle
from rwkvctl.models.bundle import HUB_WEIGHTS_NAME, INFO_NAME, WEIGHTS_NAME, BundleInfo
from rwkvctl.registry import card as cards
from rwkvctl.registry.card import Card, Score
from rwkvctl.registry.lineage import Origin

if TYPE_CHECKING:
    from torch import nn

CONFIG_NAME, CARD_NAME = "config.json", "README.md"
FILES = (HUB_WEIGHTS_NAME, CONFIG_NAME, CARD_NAME, INFO_NAME)
"""In the order in which they are sent: whoever finds the last one finds all."""
TEXT_BYTES = 16 << 20
"""Largest JSON file that is read from elsewhere."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".tar")
LOADS = re.compile(r"(hf[-_]hub|local-dir|file|https?|s3|gs):|[/\\~]", re.IGNORECASE)
"""How a text in a network's description begins that has a library fetch something, or read this machine's files."""
FETCHES = {"pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "weights"}
"""Arguments of timm's `create_model` that do the same."""


def write(folder: Path, model_folder: Path, card: Card, licence: str) -> BundleInfo:
    """Write a model folder into an empty folder in the hub's form; what it says of the model there.

    UserError where the model folder is damaged.
    """
    model, info = bundle.load(model_folder)
    info = info.model_copy(update={"extra": published_extra(info.extra)})
    shutil.copyfile(bundle.weights_path(model_folder), folder / HUB_WEIGHTS_NAME)
    write_json(folder / CONFIG_NAME, config_of(model, info))
    write_bytes(folder / CARD_NAME, readme(card, info, licence).encode())
    bundle.write_info(folder, info)
    return info


def read(folder: Path, source: str) -> tuple[nn.Module, BundleInfo]:
    """The model of a folder that came from elsewhere, and what it says of it, after every check.

    UserError, which names `source`: no model, a pickle, another program's, damaged, one whose files contradict each
    other, or one that would have a library fetch or read something else.
    """
    for name in (INFO_NAME, CONFIG_NAME):
        if (folder / name).exists() and (folder / name).stat().st_size > TEXT_BYTES:
            raise UserError(f"{source}: {name} has more than {TEXT_BYTES >> 20} MB; it is none of a model")
    try:
        info = bundle.read_info(folder)
        if (found := next(reaching_out(info.model), None)) is not None:
            raise UserError(f"{source}: {INFO_NAME} has {found}, which would load something else; it is not used")
        model, info = bundle.load(folder)
    except UserError as error:
        raise UserError(str(error).replace(f"{folder}/", f"{source}: ").replace(str(folder), source)) from None
    check_config(folder, model, info, source)
    return model, info


def explain_missing(names: list[str], config: dict[str, Any], source: str) -> UserError:
    """Why a place without `model.json` has no model for us."""
    pickles = [name for name in names if name.lower().endswith(PICKLES)]
    if HUB_WEIGHTS_NAME in names or WEIGHTS_NAME in names:
        kind = config.get("model_type") or config.get("architecture") or ""
        what = f"a model of kind {str(kind)[:40]}, " if kind else ""
        return UserError(
            f"{source}: is {what}without {INFO_NAME} (classes, image size, intensity), so made by another program; "
            "write it with `rwkvctl model push`, or load it with rwkv_unet.RWKVUNet.from_pretrained"
        )
    if pickles:
        return UserError(
            f"{source}: {pickles[0][:60]} is a pickle, which can run any code; "
            f"get the model as {HUB_WEIGHTS_NAME} with {INFO_NAME}"
        )
    return UserError(f"{source}: no model here ({INFO_NAME} is missing); rwkvctl model push writes one")


def config_of(model: nn.Module, info: BundleInfo) -> dict[str, Any]:
    """The content of config.json: what the program that is most likely to read it needs."""
    from rwkv_unet import RWKVUNet

    if isinstance(model, RWKVUNet):
        return dataclasses.asdict(model.config)
    if info.library == "timm":
        return timm_config(model, info)
    return {"library": info.library, **info.model}


def timm_config(model: nn.Module, info: BundleInfo) -> dict[str, Any]:
    """As timm's `local-dir:` and the hub's timm integration read it."""
    from timm.models._hub import save_config_for_hf

    size = (info.image_size, info.image_size) if isinstance(info.image_size, int) else info.image_size
    own = {"label_names": info.classes, "pretrained_cfg": {"input_size": [info.channels, *size]}}
    with tempfile.TemporaryDirectory() as folder:
        save_config_for_hf(model, f"{folder}/{CONFIG_NAME}", model_config=own)
        found: dict[str, Any] = json.loads((Path(folder) / CONFIG_NAME).read_text())
    return found


def check_config(folder: Path, model: nn.Module, info: BundleInfo, source: str) -> None:
    """UserError where config.json describes another network than model.json, so that two programs would not agree."""
    path = folder / CONFIG_NAME
    if not path.exists():
        return
    expected = json.loads(json.dumps(config_of(model, info)))
    try:
        found = json.loads(path.read_text())
        keys = ("architecture", "num_classes") if info.library == "timm" else tuple(expected)
        same = {key: found.get(key, expected[key]) for key in keys} == {key: expected[key] for key in keys}
    except (ValueError, AttributeError):
        same = False
    if not same:
        raise UserError(f"{source}: {CONFIG_NAME} and {INFO_NAME} describe different networks; get the model again")


def reaching_out(value: Any, path: str = "model") -> Iterator[str]:
    """What in a network's description would have a library fetch weights, or read files of this machine."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key in FETCHES and item:
                yield f"{path}.{key}"[:80]
            yield from reaching_out(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for item in value:
            yield from reaching_out(item, path)
    elif isinstance(value, str) and LOADS.match(value):
        yield f"{path} {value[:60]!r}"


# What others may know ------------------------------------------------------------------------------------------------


def published_extra(extra: dict[str, Any]) -> dict[str, Any]:
    """Without the paths and addresses of this lab."""
    kept = {key: value for key, value in extra.items() if key != "data"}
    if isinstance(begun := kept.get("encoder"), dict):
        kept["encoder"] = begun | {"reference": published(str(begun.get("reference", "")))}
    return kept


def published(reference: str) -> str:
    """A reference without where it lies: the name of a file or a folder."""
    return reference if reference.startswith("models:/") else mask(reference).rstrip("/").rpartition("/")[2]


def published_origin(origin: Origin) -> Origin:
    encoder = None if origin.encoder is None else published_origin(origin.encoder)
    note = "" if "/" in origin.note else origin.note
    return replace(origin, model=published(origin.model), data="", spec={}, encoder=encoder, note=note)


# The card ------------------------------------------------------------------------------------------------------------


def readme(card: Card, info: BundleInfo, licence: str) -> str:
    """The card with the head that the hub reads, and how the model is used from there."""
    card = replace(card, origin=published_origin(card.origin))
    ours = info.library == "rwkv_unet" and str(info.model.get("name", "")).startswith("rwkv_unet_")
    use = "    rwkvctl predict FOLDER IMAGES --out masks/" if info.kind == "segmentation" else ""
    if ours:
        use += "\n\n```python\nfrom rwkv_unet import RWKVUNet\n\nmodel = RWKVUNet.from_pretrained(FOLDER)\n```"
    elif info.library == "timm":
        use += (
            '```python\nimport rwkv_unet, timm\n\nmodel = timm.create_model("local-dir:FOLDER", pretrained=True)\n```'
        )
    return cards.as_markdown(card, spec=False, head=head(card, info, licence), use=use)


def head(card: Card, info: BundleInfo, licence: str) -> str:
    """The YAML of the card: licence, tags, data, and the scores as the hub's model index."""
    from huggingface_hub import ModelCardData

    task = "image-segmentation" if info.kind == "segmentation" else "image-classification"
    results = [result(score, card, task) for score in card.scores if score.value == score.value]
    data = ModelCardData(
        license=licence or "other",
        license_name=None if licence else "not-stated",
        library_name="timm" if info.library == "timm" else "rwkvctl",
        pipeline_tag=task,
        tags=["rwkv-unet", "medical-imaging", *([card.dataset] if card.dataset else [])],
        datasets=[card.dataset] if card.dataset else None,
        metrics=sorted({one.metric_type for one in results}) or None,
        model_name=card.model.removeprefix("models:/") if results else None,
        eval_results=results or None,
    )
    return data.to_yaml().rstrip("\n") + "\n"


def result(score: Score, card: Card, task: str) -> Any:
    from huggingface_hub import EvalResult

    return EvalResult(
        task_type=task,
        dataset_type=card.dataset or "unknown",
        dataset_name=card.title or card.dataset or "unknown",
        dataset_split=score.part,
        metric_type="dice" if score.metric.startswith("dsc") else "hausdorff_distance_95",
        metric_name=score.metric,
        metric_value=round(score.value, 6),
    )
