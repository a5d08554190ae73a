"""An exported model with its pre- and post-processing, run by onnxruntime. Needs no torch.

`rwkvctl model export` makes such files, see `export_pipeline` for what they take and give.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from rwkvctl.base.errors import JobFailedError, UserError
from rwkvctl.data.images import normalise
from rwkvctl.models.bundle import BundleInfo

ENDING = ".onnx"
INFO = "rwkvctl.info"
"""The metadata that holds `model.json`; only files with the processing have it."""
SCALED = (0.0, 1.0)
"""The window of values that are scaled already."""
PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
SILENT = 3
"""onnxruntime's severity of errors: its warnings are about an input that has a default."""

Ids = NDArray[np.uint8]
Logits = NDArray[np.float32]
Backend = Literal["auto", "torch", "onnxruntime"]


class Runs(Protocol):
    """An exported file that is open."""

    info: BundleInfo

    def run(self, images: NDArray[Any], *, raw: bool = False) -> tuple[Ids, Logits]:
        """Ids (N, H, W) and logits (N, classes, h, w) of images uint8 (N, H, W, 3) or slices float32 (D, H, W[, C]),
        which are normalised already, or by the file's own rule."""

    def patches(self, x: Logits) -> Logits:
        """Logits (B, classes, D, H, W) of windows (B, C, D, H, W), of a network over three axes."""


class OnnxModel:
    """An open file; `info` is what it says of its model."""

    def __init__(self, path: Path, session: Any, info: BundleInfo):
        self.path, self.session, self.info = path, session, info

    def run(self, images: NDArray[Any], *, raw: bool = False) -> tuple[Ids, Logits]:
        """See `Runs`. JobFailedError where onnxruntime gives up, for want of memory say."""
        feed = {"image": np.ascontiguousarray(images)}
        feed |= numbers(self.info, raw=raw)
        try:
            ids, logits = self.session.run(["ids", "logits"], feed)
        except Exception as error:  # onnxruntime's own have no common base
            raise self._failed(error) from error
        return ids, logits

    def patches(self, x: Logits) -> Logits:
        """See `Runs`."""
        try:
            [logits] = self.session.run(["logits"], {"patches": np.ascontiguousarray(x)})
        except Exception as error:
            raise self._failed(error) from error
        found: Logits = logits
        return found

    def _failed(self, error: Exception) -> JobFailedError:
        return JobFailedError(f"{self.path}: onnxruntime: {' '.join(str(error).split())[:200]}")

    @property
    def device(self) -> str:
        """Where it runs, for `run.json`."""
        import onnxruntime

        return f"{self.session.get_providers()[0]} of onnxruntime {onnxruntime.__version__}"


def takes_window(info: BundleInfo) -> bool:
    """Whether a file's second input is `window`, the two ends of the only channel's range, and not `scaling`."""
    rules = normalise.rules_of(info.intensity) or []
    return info.channels == 1 and all(rule.is_range for rule in rules)


def numbers(info: BundleInfo, *, raw: bool) -> dict[str, NDArray[np.float32]]:
    """What a file is given beside the images: numbers that leave normalised values as they are, or NaN for its own."""
    if info.image_kind == "rgb8":
        return {}
    name, own = ("window", SCALED) if takes_window(info) else ("scaling", [normalise.AS_GIVEN[:4]] * info.channels)
    given = np.asarray(own, np.float32)
    return {name: np.full_like(given, np.nan) if raw else given}


def is_file(reference: str | os.PathLike[str]) -> bool:
    """Whether a model's name means an exported file."""
    return os.fspath(reference).lower().endswith(ENDING)


def backend(references: Sequence[str], wanted: Backend) -> Literal["torch", "onnxruntime"]:
    """What runs the models; UserError where that can't be."""
    files = [reference for reference in references if is_file(reference)]
    others = [reference for reference in references if not is_file(reference)]
    if files and others:
        raise UserError(f"an ensemble is of exported files or of models: {files[0]} is a file, {others[0]} is not")
    if files and wanted == "torch":
        raise UserError(f"--backend torch: {files[0]} is for onnxruntime; give the run or the folder that it is of")
    if others and wanted == "onnxruntime":
        raise UserError(
            f"--backend onnxruntime: runs exported files, {others[0]} is none; make one with: "
            f"rwkvctl model export {others[0]} --out model.onnx"
        )
    return "onnxruntime" if files else "torch"


def open_file(path: Path) -> OnnxModel:
    """Open a file; UserError for one that is not there, not ours, or without the processing."""
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"model {path}: {(error.strerror or '').lower()}") from None
    return _opened(path, (status.st_mtime_ns, status.st_size))


@functools.lru_cache(maxsize=8)
def _opened(path: Path, _: tuple[int, int]) -> OnnxModel:
    """Once a process: it takes seconds, and the file is asked for its model before it is run."""
    try:
        import onnxruntime
    except ImportError:
        raise UserError("an exported model needs onnxruntime; install it with: pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = SILENT
    if (threads := os.environ.get("OMP_NUM_THREADS", "")).isdigit():  # as torch does
        options.intra_op_num_threads = int(threads)
    available = onnxruntime.get_available_providers()
    providers = [provider for provider in PROVIDERS if provider in available]
    try:
        session = onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # onnxruntime's own have no common base
        reason = " ".join(str(error).split())[:150]
        raise UserError(f"model {path}: is no ONNX file that onnxruntime can open ({reason})") from None
    facts = session.get_modelmeta().custom_metadata_map
    if INFO not in facts:
        raise UserError(
            f"model {path}: lacks the pre- and post-processing; make it with: rwkvctl model export MODEL --out {path}"
        )
    try:
        return OnnxModel(path, session, BundleInfo.model_validate(json.loads(facts[INFO])))
    except (ValueError, ValidationError):
        raise UserError(f"model {path}: its metadata {INFO} cannot be read; export the model again") from None
