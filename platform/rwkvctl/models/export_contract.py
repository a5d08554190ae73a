"""What an exported file with its processing takes and gives, for people and programs that have nothing of ours."""

from __future__ import annotations

import json
from typing import Any

from rwkvctl.data.feed.model_input import IMAGENET_MEAN, IMAGENET_STD
from rwkvctl.data.images import grid, normalise
from rwkvctl.models import export_rules
from rwkvctl.models.bundle import BundleInfo, VolumeInput
from rwkvctl.models.onnx_model import INFO, takes_window
from rwkvctl.models.windows import LEAST_WEIGHT, SIGMA

CONTRACT = "rwkvctl.expects"

RESIZING = (
    "to network_size as OpenCV does: INTER_AREA where the area shrinks, else INTER_LINEAR; the logits back to the "
    "image's size bilinearly (centres on centres), then the largest one"
)


RESAMPLING = (
    "volumes to `spacing`: rows and columns cubic (Keys, a = -0.5), then slices linear, with wider kernels where an "
    "axis shrinks (antialias), centres on centres; logits back linearly, then the largest one"
)


def contract(info: BundleInfo, form: str) -> dict[str, Any]:
    """The content of `NAME.json`, which the file's metadata has too."""
    if info.volumes is not None:
        return common(info, form) | of_volumes(info, info.volumes)
    size = info.image_size
    logits = 1 if len(info.classes) <= 2 else len(info.classes)
    return common(info, form) | {
        "inputs": inputs(info, form),
        "outputs": {
            "ids": {"dtype": "uint8", "shape": ["N", "H", "W"], "values": "class ids, at the input's own size"},
            "logits": {
                "dtype": "float32",
                "shape": ["N", logits, *((size, size) if isinstance(size, int) else size)],
                "values": "at the network's size, before temperature and softmax"
                if logits > 1
                else "at the network's size, before temperature and sigmoid; above 0 is the foreground",
            },
        },
        "network_size": [size, size] if isinstance(size, int) else list(size),
        "resize": RESIZING,
        "normalisation": {"divide_by": 255, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
        if info.image_kind == "rgb8"
        else None,
        "spacing": "not resampled: slices as they are stored, whatever their spacing",
    }


def common(info: BundleInfo, form: str) -> dict[str, Any]:
    """What is said of every file."""
    return {
        "schema": "rwkv-exported/1",
        "format": form,
        "classes": dict(enumerate(info.classes)),
        "intensity": info.intensity,
        "orientation": orientation(info),
        "temperature": info.temperature,
        "dataset": info.dataset,
        "network": info.model,
        "weights_sha256": info.weights_sha256,
    }


def of_volumes(info: BundleInfo, own: VolumeInput) -> dict[str, Any]:
    """Of a network over three axes, whose file takes patches."""
    logits = 1 if len(info.classes) <= 2 else len(info.classes)
    return {
        "inputs": {
            "patches": {
                "dtype": "float32",
                "shape": ["N", info.channels, *own.patch],
                "axes": "patches, channels, slices, rows, columns, see orientation",
                "values": "normalised as `intensity` says, of the whole volume; then brought to `spacing`",
            }
        },
        "outputs": {
            "logits": {
                "dtype": "float32",
                "shape": ["N", logits, *own.patch],
                "values": "before temperature and "
                + ("softmax" if logits > 1 else "sigmoid; above 0 is the foreground"),
            }
        },
        "patch": list(own.patch),
        "spacing": None if own.spacing is None else {"mm": list(own.spacing), "axes": "slices, rows, columns"},
        "resize": RESAMPLING if own.spacing else None,
        "windows": {
            "overlap": own.overlap,
            "first": "0 along each axis, then every int(side * (1 - overlap)) voxels; the last ends with the volume",
            "smaller_volumes": "lie in the middle, with the smaller half of what lacks before them; their border is "
            "continued",
            "weights": f"a Gaussian of {SIGMA:g} of each side around the middle, at least {LEAST_WEIGHT:g}",
        },
    }


def inputs(info: BundleInfo, form: str) -> dict[str, Any]:
    """Every input by its name."""
    if info.image_kind == "rgb8":
        return {
            "image": {
                "dtype": "uint8",
                "shape": ["N", "H", "W", 3],
                "axes": "images of one size, rows from the top, columns from the left, colours R, G, B",
                "values": "0 to 255, as an image is shown (its EXIF rotation applied); nothing else is done to them",
            }
        }
    if not takes_window(info):
        return _of_channels(info, form)
    return {
        "image": {
            "dtype": "float32",
            "shape": ["N", "H", "W"],
            "axes": "slices, rows, columns, see orientation; a whole volume, or parts of it with its window",
            "values": "as the scanner gave them (HU of a CT), finite" if info.intensity else "in [0, 1]",
        },
        "window": {
            "dtype": "float32",
            "shape": [2],
            "optional": form == "onnx",
            "default": "NaN, NaN: the rule `intensity`, of the slices that are given",
            "values": "the two numbers that become 0 and 1; [0, 1] where values are scaled already",
        },
    }


def _of_channels(info: BundleInfo, form: str) -> dict[str, Any]:
    """Of several channels, or with another rule than a range."""
    rules = normalise.rules_of(info.intensity) or []
    raw = bool(rules) and export_rules.knows(rules)
    names = ", ".join(info.channel_names or [])
    several = [info.channels] if info.channels > 1 else []
    return {
        "image": {
            "dtype": "float32",
            "shape": ["N", "H", "W", *several],
            "axes": "slices, rows, columns, see orientation"
            + (f"; then {info.channels} channels{': ' if names else ''}{names}" if several else "")
            + "; a whole volume, or parts of it with its scaling",
            "values": "as the files hold them, finite" if raw else "normalised as `intensity` says",
        },
        "scaling": {
            "dtype": "float32",
            "shape": [info.channels, 4],
            "optional": form == "onnx",
            "default": "NaN: the rule `intensity`, of the slices that are given" if raw else "NaN: nothing is done",
            "values": "low, high, shift, divisor of each channel: (clip(x, low, high) - shift) / divisor; "
            "[-inf, inf, 0, 1] where values are normalised already",
        },
    }


def orientation(info: BundleInfo) -> dict[str, Any] | None:
    """How a scan's axes are to be laid."""
    if info.orientation is None or not grid.is_orientation(info.orientation):
        return None
    return {
        "name": info.orientation,
        "axes": grid.axes_of(info.orientation),
        "meaning": "where slices, rows and columns lead: R(ight) or L(eft), A(nterior) or P(osterior), S(uperior) or "
        "I(nferior), of the patient",
    }


def metadata(info: BundleInfo, form: str) -> dict[str, str]:
    """What is written into the file; values are JSON."""
    return {
        CONTRACT: json.dumps(contract(info, form), sort_keys=True),
        INFO: json.dumps(info.model_dump(mode="json", by_alias=True), sort_keys=True),
    }
