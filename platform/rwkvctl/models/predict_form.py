"""In which form a scan's mask is written: as the scan's own file, or beside a DICOM series as a DICOM segmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.errors import BadFile, UserError
from rwkvctl.base.files import write_bytes
from rwkvctl.base.suggestions import did_you_mean
from rwkvctl.config.specs.segments import SegmentCode
from rwkvctl.data.images import dicom_seg, itk
from rwkvctl.models.bundle import BundleInfo

Name = Literal["auto", "dicom-seg", "dicom-labelmap"]
KINDS: Mapping[Name, dicom_seg.Kind] = {"dicom-seg": "BINARY", "dicom-labelmap": "LABELMAP"}


@dataclass(frozen=True)
class Form:
    """`auto` is a scan's own form, of a DICOM series NIfTI; the rest is for DICOM segmentations alone."""

    name: Name = "auto"
    keep_empty_frames: bool = False
    codes: Mapping[str, SegmentCode] = field(default_factory=dict)
    maker: dicom_seg.Maker = field(default_factory=lambda: dicom_seg.Maker("rwkvctl", "unknown"))

    @property
    def is_dicom(self) -> bool:
        return self.name in KINDS

    def check(self, inputs: Sequence[Path], info: BundleInfo) -> None:
        """UserError for inputs that have no DICOM segmentation, and for codes of classes that the model has not."""
        if not self.is_dicom:
            return
        dicom_seg.check_installed()
        for name in self.codes:
            if name not in info.classes[1:]:
                raise UserError(f"--segment-codes: {name}: no such class; {did_you_mean(name, info.classes[1:])}")
        other = next((path for path in inputs if not itk.is_series(path)), None)
        if other is not None:
            raise UserError(f"input {other}: is no DICOM series, as --format {self.name} needs; leave --format out")

    def write(self, classes: Sequence[str], images: Sequence[Path], target: Path, mask: NDArray[np.uint8]) -> None:
        """A DICOM segmentation of ids [x, y, z]; UserError where none can refer to the series' images."""
        try:
            made = dicom_seg.encoded(
                images,
                mask,
                classes,
                self.maker,
                kind=KINDS[self.name],
                codes=self.codes,
                keep_empty_frames=self.keep_empty_frames,
            )
        except BadFile as error:
            raise UserError(f"input {error}; give the series as its scanner wrote it, or leave --format out") from error
        write_bytes(target, made)


def maker(infos: Sequence[BundleInfo], references: Sequence[str]) -> dicom_seg.Maker:
    """What a DICOM segmentation says of the models that made it. Of a model that was given as a path its last name
    alone, because the file leaves this machine."""
    models = [f"{info.model.get('name', '')} on {info.dataset}" if info.dataset else info.model.get("name", "")
              for info in infos]  # fmt: skip
    shown = [text if text.startswith("models:/") else Path(text).name for text in references]
    several = len(infos) > 1
    parameters = {
        f"{key}{f'_{place}' if several else ''}": value
        for place, (info, text) in enumerate(zip(infos, shown, strict=True), start=1)
        for key, value in {"model": text, "weights_sha256": info.weights_sha256}.items()
    }
    return dicom_seg.Maker(
        f"mean of {len(infos)} models: {models[0]}" if several else models[0],
        "+".join(info.weights_sha256[:12] or "unknown" for info in infos),
        parameters,
    )
