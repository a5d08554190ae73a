"""A trained network as one file for other programs: ONNX, or a program of `torch.export`. With what `predict` does
around it, see `export_whole`.

Both take batches of any size, of images of any size from three times the model's divisor on, or of the training size
alone; they are run and compared with the model before they get their name.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rwkvctl.base import files
from rwkvctl.base.errors import JobFailedError, UserError
from rwkvctl.data.feed.model_input import IMAGENET_MEAN, IMAGENET_STD
from rwkvctl.models.bundle import BundleInfo

Run = Callable[[Tensor], Tensor]
"""An open file, from images to logits."""

TOLERANCE = 1e-4
"""Largest difference of logits, relative to the largest logit."""
OPSET = 18
LEAST, MOST_FREE = 3, 64
"""Times the divisor; the divisor of a model with windows of a fixed size is larger."""


@dataclass(frozen=True)
class Exported:
    """What was written, and how far its logits are from the model's: the largest difference over the largest logit,
    by image size."""

    path: str
    format: str
    bytes: int
    errors: dict[str, float]


@dataclass(frozen=True)
class Graph:
    """What is written: a module with its inputs as they are to be traced, and what is free in their shapes."""

    module: nn.Module
    examples: tuple[Tensor, ...]
    shapes: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    facts: dict[str, str]
    """The file's metadata."""


def export(model: nn.Module, info: BundleInfo, out: Path, form: str, *, fixed_size: bool = False) -> Exported:
    """Write `model` to `out`; UserError where its kind cannot be exported, JobFailedError if the result differs.

    fixed_size: for images of the training size alone, which every model can do.

    The input `image` is float32 (B, C, H, W), normalised as in training; the output `logits` (B, num_classes, H, W), or
    (B, num_classes) of a classifier. What a program needs beside that (classes, image size, mean and deviation) is in
    the file's metadata.
    """
    if form not in WRITERS:
        raise UserError(f"--format {form}: choose onnx or pt2")
    if info.volumes is not None:
        raise UserError(
            "--logits: of a network over three axes the file takes patches and gives logits anyway; leave it out"
        )
    write, open_ = WRITERS[form]
    height, width = training_size(info)
    shapes: tuple[dict[int, Any], ...] = ({0: torch.export.Dim("batch", min=1)},)
    sizes = [(height, width)]
    if not fixed_size:
        shapes, free = free_sizes(model, height, width)
        sizes += [size for size in free if size not in sizes]
    example = example_image(info, batch=2, size=sizes[-1])
    with files.atomic_path(out) as temporary:
        with exporting(model, form):
            write(Graph(model, (example,), shapes, ("image",), ("logits",), metadata(info)), temporary)
            run = open_(temporary)
            errors = {f"{height}x{width}": difference(model, run, info, (height, width)) for height, width in sizes}
        worst = max(errors.values())
        if not worst <= TOLERANCE:
            raise JobFailedError(f"{out}: its logits differ from the model's by {worst:.1e} (at most {TOLERANCE:.0e})")
    return Exported(str(out), form, out.stat().st_size, errors)


def training_size(info: BundleInfo) -> tuple[int, int]:
    """Height and width of the images that the model was trained on."""
    size = info.image_size
    return (size, size) if isinstance(size, int) else size


def free_sizes(model: nn.Module, height: int, width: int) -> tuple[tuple[dict[int, Any], ...], list[tuple[int, int]]]:
    """What is free in the input's shape, and two sizes to compare at, the second one not square.

    Height and width are multiples of the model's divisor from thrice that on: sizes of 1 and 2 in the deepest map
    would be special cases to torch.export.
    """
    divisor = int(getattr(model, "divisor", 16))
    if divisor > MOST_FREE or min(height, width) < LEAST * divisor:
        raise UserError(
            f"{height} x {width}: {type(model).__name__} is exported for images of any size only from "
            f"{LEAST * divisor} px on; add --fixed-size"
        )
    batch = torch.export.Dim("batch", min=1)
    free = [divisor * torch.export.Dim(name, min=LEAST) for name in ("h", "w")]
    return ({0: batch, 2: free[0], 3: free[1]},), [(4 * divisor, 4 * divisor), (4 * divisor, 6 * divisor)]


def example_image(info: BundleInfo, batch: int, size: tuple[int, ...]) -> Tensor:
    """Noise in the shape of a normalised batch of images (B, C, H, W), or of windows (B, C, D, H, W)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, info.channels, *size, generator=generator)


def metadata(info: BundleInfo) -> dict[str, str]:
    """What another program needs to feed the model and to read its answer.

    `intensity` is the rule that brings raw numbers, of a scanner or of 16 bits, to those that the model sees;
    `orientation` says how its slices lie in a scan. Values are JSON, null where the model has no such rule.
    """
    rgb = info.image_kind == "rgb8"
    values: dict[str, Any] = {
        "classes": info.classes,
        "image_size": info.image_size,
        "image_kind": info.image_kind,
        "mean": IMAGENET_MEAN if rgb else None,
        "std": IMAGENET_STD if rgb else None,
        "intensity": info.intensity,
        "orientation": info.orientation,
        "model": info.model,
        "dataset": info.dataset,
        "weights_sha256": info.weights_sha256,
    }
    return {f"rwkvctl.{key}": json.dumps(value, sort_keys=True) for key, value in values.items()}


@torch.inference_mode()
def difference(model: nn.Module, run: Run, info: BundleInfo, size: tuple[int, int]) -> float:
    """How far the exported logits of three images are from the model's, relative to the largest."""
    image = example_image(info, batch=3, size=size)
    expected = model(image)
    return float((run(image) - expected).abs().max() / expected.abs().max())


@contextmanager
def exporting(model: nn.Module, form: str) -> Iterator[None]:
    """Whatever torch raises on a model that it cannot trace becomes one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch and onnxscript, about themselves
            yield
    except (UserError, OSError):
        raise
    except Exception as error:  # torch.export has no common base for what it refuses
        cause: BaseException = error
        while cause.__cause__ is not None:  # what torch tells around it is about reporting bugs
            cause = cause.__cause__
        reason = " ".join(re.sub(r"\x1b\[\d+m", "", str(cause)).split())[:200]
        raise UserError(f"{type(model).__name__} cannot be exported to {form}: {reason}; try --fixed-size") from error


# ONNX ---------------------------------------------------------------------------------------------------------------


def write_onnx(graph: Graph, path: Path) -> None:
    """An ONNX model in standard operators only. Inputs after the first are optional, with their examples as default."""
    try:
        import onnx_ir
        import onnxruntime  # noqa: F401
        from onnx_ir.passes.common import RemoveUnusedNodesPass

        from rwkvctl.models.onnx_ops import TRANSLATIONS
    except ImportError as error:
        raise UserError(f"ONNX export needs {error.name}; install it with: pip install 'rwkvctl[onnx]'") from None
    program = torch.onnx.export(
        graph.module,
        graph.examples,
        dynamo=True,
        opset_version=OPSET,
        custom_translation_table=TRANSLATIONS,
        dynamic_shapes=graph.shapes,
        input_names=graph.inputs,
        output_names=graph.outputs,
        verbose=False,
    )
    assert program is not None
    model = program.model
    for given, example in zip(model.graph.inputs[1:], graph.examples[1:], strict=True):
        given.const_value = onnx_ir.tensor(example.numpy(), name=given.name)
        model.graph.register_initializer(given)
    RemoveUnusedNodesPass()(model)
    model.metadata_props.update(graph.facts)
    program.save(path)


def open_onnx(path: Path) -> Run:
    """Runs a file as onnxruntime does."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


# torch.export -------------------------------------------------------------------------------------------------------


def write_pt2(graph: Graph, path: Path) -> None:
    """A program for `torch.export.load`, after `import biwkv`; it needs no other code of ours."""
    program = torch.export.export(graph.module, graph.examples, dynamic_shapes=graph.shapes)
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files=dict(graph.facts))


def open_pt2(path: Path) -> Run:
    """Runs a file as `torch.export.load` gives it."""
    import biwkv  # noqa: F401  registers torch.ops.biwkv

    with path.open("rb") as file:
        return torch.export.load(file).module()


WRITERS: dict[str, tuple[Callable[[Graph, Path], None], Callable[[Path], Run]]] = {
    "onnx": (write_onnx, open_onnx),
    "pt2": (write_pt2, open_pt2),
}
