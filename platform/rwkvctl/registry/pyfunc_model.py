"""The code file of a registered segmentation model: MLflow runs it, beside a model folder, in place of a pickle.

The model takes and gives text, which is what `mlflow models serve` carries without change: the base64 of a file, as
`rwkvctl predict` takes it. Pictures (PNG, JPEG, TIFF, BMP) and `.npy` arrays of any type of number are brought to the
model by its own rule, see `rwkvctl.models.predict_inputs`; a model of scans also takes NIfTI (`.nii`, `.nii.gz`). One
string comes back for each: the base64 of a PNG of class ids, of an `.npy` file (uint8 (D, H, W)) for a volume, or of
a NIfTI file on the scan's own grid.

    printf '{"inputs": ["%s"]}' "$(base64 -w0 a.png)" |
        curl -s localhost:5000/invocations -H 'content-type: application/json' -d @-

What cannot be segmented is answered with status 400 and one line. In Python `rwkvctl.models.bundle.load` and
`rwkvctl.models.inference` do the same on arrays.
"""

from __future__ import annotations

import base64
import binascii
import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel
from numpy.typing import NDArray

from rwkvctl.base.errors import UserError
from rwkvctl.models import bundle, members
from rwkvctl.models.ensemble import Member, Segmenter
from rwkvctl.models.predict_inputs import decode
from rwkvctl.models.predict_scans import segment_scan

if TYPE_CHECKING:
    from mlflow.pyfunc import PythonModelContext

BUNDLE_ARTIFACT = "bundle"
GZIP = b"\x1f\x8b"


class Refusal(MlflowException):
    """One line, which stays one: MLflow's server would put the whole input, megabytes of base64, in front of it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "message" or not hasattr(self, "message"):
            super().__setattr__(name, value)


class SegmentationModel(PythonModel):
    """A model folder behind MLflow's `predict`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the model folder, on a GPU where there is one; MLflow calls this once."""
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        found = [Member(*bundle.load(folder, device)) for folder in members.folders(context.artifacts[BUNDLE_ARTIFACT])]
        self.members, self.info = found, found[0].info

    def predict(self, context: PythonModelContext, model_input: list[str], params: Any = None) -> list[str]:
        """The mask of each input, as this module's docstring says. MlflowException, one line, for what is none."""
        masks = []
        try:  # here, and not on loading: a server that cannot start shows its caller a traceback
            bundle.require(self.info, "segmentation", "this model")
        except UserError as error:
            raise Refusal.invalid_parameter_value(str(error)) from None
        for number, text in enumerate(model_input):
            try:
                masks.append(self._segment(from_base64(text)))
            except UserError as error:
                raise Refusal.invalid_parameter_value(f"input {number}: {error}") from None
        return masks

    def _segment(self, content: bytes) -> str:
        if is_nifti(content):
            return to_base64(self._segment_scan(content))
        mask = Segmenter(self.members).segment(decode(content, self.info).values).mask
        return encode_npy(mask) if mask.ndim == 3 else encode_png(mask)

    def _segment_scan(self, content: bytes) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            scan = Path(folder) / ("scan.nii.gz" if content.startswith(GZIP) else "scan.nii")
            scan.write_bytes(content)
            try:
                segment_scan(Segmenter(self.members), scan, mask := Path(folder) / f"mask-{scan.name}")
                return mask.read_bytes()
            except UserError as error:
                raise UserError(str(error).removeprefix(f"input {scan}: ")) from None


def is_nifti(content: bytes) -> bool:
    """Whether bytes are a NIfTI file, compressed or not; nothing else that is compressed is taken."""
    return content.startswith(GZIP) or content[344:347] in (b"n+1", b"ni1") or content[4:7] == b"n+2"


def from_base64(text: str) -> bytes:
    """The content of a file; UserError where the text is not one."""
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"is not the base64 of a file ({error}); make it with: base64 -w0 FILE") from None
    if not content:
        raise UserError("is the base64 of an empty file")
    return content


def encode_png(mask: NDArray[np.uint8]) -> str:
    """The base64 of a PNG of class ids (H, W)."""
    import cv2

    written, data = cv2.imencode(".png", mask)
    assert written
    return to_base64(data.tobytes())


def encode_npy(array: NDArray[Any]) -> str:
    """The base64 of an `.npy` file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return to_base64(buffer.getvalue())


def to_base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


set_model(SegmentationModel())
