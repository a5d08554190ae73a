"""The code file of a registered segmentation model: MLflow runs it, beside a model folder, in place of a pickle.

The model takes and gives text, which is what `mlflow models serve` carries without change. One string an image: the
base64 of a PNG or JPEG for a model of kind `rgb8`, of an `.npy` file (float32 (H, W), or (D, H, W) for a volume) for
one of kind `float`. One string comes back for each: the base64 of a PNG of class ids, or of an `.npy` file (uint8
(D, H, W)) for a volume.

    curl localhost:5000/invocations -H 'content-type: application/json' -d "{\"inputs\": [\"$(base64 -w0 a.png)\"]}"

In Python `rwkvctl.models.bundle.load` and `rwkvctl.models.inference` do the same on arrays.
"""

from __future__ import annotations

import base64
import binascii
import io
from typing import TYPE_CHECKING, Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel
from numpy.typing import NDArray

from rwkvctl.base.errors import UserError
from rwkvctl.models import bundle, inference

if TYPE_CHECKING:
    from mlflow.pyfunc import PythonModelContext

BUNDLE_ARTIFACT = "bundle"


class SegmentationModel(PythonModel):
    """A model folder behind MLflow's `predict`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the model folder, on a GPU where there is one; MLflow calls this once."""
        import torch

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model, self.info = bundle.load(context.artifacts[BUNDLE_ARTIFACT], self.device, kind="segmentation")

    def predict(self, context: PythonModelContext, model_input: list[str], params: Any = None) -> list[str]:
        """The mask of each image, as this module's docstring says."""
        return [self._segment(decode(text, self.info.image_kind)) for text in model_input]

    def _segment(self, image: NDArray[Any]) -> str:
        options: dict[str, Any] = {
            "image_size": self.info.image_size,
            "image_kind": self.info.image_kind,
            "device": self.device,
        }
        if self.info.image_kind == "float" and image.ndim == 3:
            return encode_npy(inference.segment_volume(self.model, image, **options))
        return encode_png(inference.segment_image(self.model, image, **options))


def decode(text: str, image_kind: str) -> NDArray[Any]:
    """An image from its base64; UserError where it is not one of the kind."""
    try:
        content = base64.b64decode(text, validate=True)
        if image_kind == "float":
            return np.load(io.BytesIO(content), allow_pickle=False)
    except (binascii.Error, ValueError, EOFError) as error:
        raise UserError(f"input is not base64 of an image of kind {image_kind!r}: {error}") from None
    import cv2

    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB) if content else None
    if pixels is None:
        raise UserError("input is base64, but not of a PNG or JPEG: send an encoded image file")
    return np.asarray(pixels)


def encode_png(mask: NDArray[np.uint8]) -> str:
    """The base64 of a PNG of class ids (H, W)."""
    import cv2

    written, data = cv2.imencode(".png", mask)
    assert written
    return base64.b64encode(data.tobytes()).decode("ascii")


def encode_npy(array: NDArray[Any]) -> str:
    """The base64 of an `.npy` file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


set_model(SegmentationModel())
