"""A first request to a registered model: a blank image of its size, or a scan, as `registry.pyfunc_model` takes it.

MLflow would make it by running the model, which costs seconds of every training.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
from pathlib import Path

import numpy as np

from rwkvctl.models import onnx_model
from rwkvctl.models.bundle import BundleInfo, VolumeInput

PLAIN, SERVING = "input_example.json", "serving_input_example.json"
"""Where MLflow's pages and `mlflow models` look for it."""


def add(model: Path, info: BundleInfo) -> None:
    """Put an example into the folder of an MLflow model of a segmentation model."""
    from mlflow.models import Model

    (model / PLAIN).write_text(json.dumps([example(info)]))
    (model / SERVING).write_text(json.dumps({"inputs": [example(info)]}, indent=2))
    made = Model.load(str(model))
    made.saved_input_example_info = {"artifact_path": PLAIN, "serving_input_path": SERVING, "type": "json_object"}
    made.save(str(model / "MLmodel"))


def example(info: BundleInfo) -> str:
    """The base64 of a PNG of black, of a NIfTI file of one patch, or of the `.npy` of one slice: zeros, or a ramp where
    the rule needs contrast."""
    if info.volumes is not None:
        return base64.b64encode(nifti(info, info.volumes)).decode()
    height, width = (info.image_size, info.image_size) if isinstance(info.image_size, int) else info.image_size
    if info.image_kind == "rgb8":
        import cv2

        done, content = cv2.imencode(".png", np.zeros((height, width, 3), np.uint8))
        assert done
        return base64.b64encode(content.tobytes()).decode()
    buffer = io.BytesIO()
    several = (info.channels,) if info.channels > 1 else ()
    values = np.zeros((1, height, width, *several), np.float32)
    if not onnx_model.takes_window(info):
        values.reshape(height, width, -1)[:] += np.arange(width)[:, None]
    np.save(buffer, values, allow_pickle=False)
    return base64.b64encode(buffer.getvalue()).decode()


def nifti(info: BundleInfo, volumes: VolumeInput) -> bytes:
    """A scan with a ramp, at the model's spacing and of the size of its patches; of several channels 4-D."""
    import nibabel

    depth, height, width = volumes.patch
    values = np.broadcast_to(np.arange(width, dtype=np.int16)[:, None, None], (width, height, depth))
    if info.channels > 1:
        values = np.stack([values] * info.channels, axis=-1)
    z, y, x = volumes.spacing or (1.0, 1.0, 1.0)
    image = nibabel.Nifti1Image(np.ascontiguousarray(values), np.diag([-x, -y, z, 1.0]))
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), mtime=0)
