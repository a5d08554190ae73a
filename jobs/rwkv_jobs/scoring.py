"""DSC and HD95 of a model over one part of a data set, shared by validation and evaluation."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rwkv_jobs.worker import Worker, autocast
from rwkvctl.base.files import write_bytes
from rwkvctl.config.specs.parts import DataSpec
from rwkvctl.data.feed.cases import Case, iter_cases
from rwkvctl.data.feed.loaders import ClassificationEvalLoader
from rwkvctl.data.feed.model_input import to_input
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.reader import reader_for
from rwkvctl.models.inference import segment_image, segment_volume
from rwkvctl.pictures.overlays import overlay_png
from rwkvctl.training import metrics


@dataclass(frozen=True)
class Scores:
    """Scores of every case, in the order of the split, and their summary."""

    cases: dict[str, list[metrics.ClassScore]]
    classes: list[str]
    summary: dict[str, Any]

    def mean(self, name: str) -> float:
        """The mean over classes of one measure, for example `dsc_strict`; 0 when nothing could be counted."""
        value = self.summary["mean"][name]
        return 0.0 if value is None else value

    def metrics(self, prefix: str) -> dict[str, float]:
        """Flat names for tracking."""
        return metrics.flat_metrics(self.summary, prefix)


def predict_case(model: nn.Module, case: Case, data: DataSpec, manifest: Manifest) -> Any:
    """The mask of a case at its native size: an image at once, a volume slice by slice."""
    segment = segment_volume if case.mask.ndim == 3 else segment_image
    device = next(model.parameters()).device
    return segment(model, case.image, image_size=data.image_size, image_kind=manifest.image_kind, device=device)


def score_cases(
    model: nn.Module,
    manifest: Manifest,
    data: DataSpec,
    part: str,
    me: Worker,
    *,
    hd95: bool,
    gallery: Gallery | None = None,
) -> Scores:
    """Score a part with all workers: rank r takes the cases r::world_size, none twice."""
    me.share_buffers(model)
    model.eval()
    split = data.split or manifest.default_split
    own: dict[str, list[metrics.ClassScore]] = {}
    for case in iter_cases(manifest, split=split, part=part, rank=me.rank, world_size=me.world_size):
        prediction = predict_case(model, case, data, manifest)
        own[case.key] = metrics.score_case(
            prediction, case.mask, len(manifest.classes), case.spacing_mm, hd95=hd95, ignore_index=manifest.ignore_index
        )
        if gallery is not None:
            gallery.see(case, prediction, own[case.key])
    if gallery is not None:
        gallery.write()
    everyone: dict[str, list[metrics.ClassScore]] = {}
    for theirs in me.gather(own):
        everyone |= theirs
    ids = manifest.ids(split, part)
    assert sorted(everyone) == sorted(ids), "every case is scored exactly once"
    cases = {key: everyone[key] for key in ids}
    return Scores(cases, manifest.classes, metrics.summarise(cases, manifest.classes))


def has_foreground(manifest: Manifest, data: DataSpec, part: str, me: Worker) -> bool:
    """Whether any mask of a part contains foreground; reading stops at the first that does."""
    keys = manifest.ids(data.split or manifest.default_split, part)[me.rank :: me.world_size]
    reader = reader_for(manifest, keys)
    masks = (reader.mask(row) for row in range(len(reader)))
    return any(me.gather(any(((mask > 0) & (mask != manifest.ignore_index)).any() for mask in masks)))


class Gallery:
    """Keeps pictures of the `size` cases with the lowest DSC (among those of this worker)."""

    def __init__(self, folder: Path, size: int):
        self.folder, self.size = folder, size
        self.worst: list[tuple[float, str, bytes]] = []

    def see(self, case: Case, prediction: Any, scores: list[metrics.ClassScore]) -> None:
        """Draw a case if it is among the worst so far."""
        counted = [score.strict_dsc for score in scores if score.strict_dsc is not None]
        dsc = sum(counted) / len(counted) if counted else 1.0
        if len(self.worst) < self.size or (self.worst and (dsc, case.key) < self.worst[-1][:2]):
            self.worst.append((dsc, case.key, draw(case, prediction)))
            self.worst = sorted(self.worst, key=lambda item: item[:2])[: self.size]

    def write(self) -> None:
        """Write `<key>.png` for every case that was kept."""
        for _, key, content in self.worst:
            write_bytes(self.folder / f"{key}.png", content)


def draw(case: Case, prediction: Any) -> bytes:
    """A picture of a case; of a volume, the slice with the most foreground in truth and prediction."""
    if case.mask.ndim == 2:
        return overlay_png(case.image, case.mask, prediction)
    z = int(((case.mask > 0).sum(axis=(1, 2)) + (prediction > 0).sum(axis=(1, 2))).argmax())
    return overlay_png(case.image[z], case.mask[z], prediction[z])


@torch.no_grad()
def count_accuracy(
    model: nn.Module, manifest: Manifest, data: DataSpec, part: str, me: Worker, *, batch: int, precision: str = "auto"
) -> dict[str, float]:
    """Top-1 and top-5 in percent over a part of a classification set, every image counted once."""
    me.share_buffers(model)
    model.eval()
    split = data.split or manifest.default_split
    loader = ClassificationEvalLoader(
        manifest,
        split=split,
        part=part,
        image_size=data.image_size,
        batch=batch,
        rank=me.rank,
        world_size=me.world_size,
        workers=data.workers,
    )
    counts = torch.zeros(3, dtype=torch.float64, device=me.device)
    for images, targets, _ in loader:
        with autocast(precision, me.device):
            logits = model(to_input(images, me.device))
        counts += count_hits(logits, targets.to(me.device))
    top1, top5, images_seen = me.sum(counts).tolist()
    assert images_seen == len(manifest.ids(split, part)), "every image is counted exactly once"
    return {"top1": 100 * top1 / images_seen, "top5": 100 * top5 / images_seen}


def named(values: dict[str, float], part: str) -> dict[str, float]:
    """`{"top1": ...}` as `{"val/top1": ...}`."""
    return {f"{part}/{name}": value for name, value in values.items()}


def count_hits(logits: Tensor, targets: Tensor) -> Tensor:
    """[right at first, right among five, images] of a batch."""
    ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = ranked == targets.unsqueeze(1)
    images = torch.tensor(len(targets), device=hits.device)
    return torch.stack([hits[:, 0].sum(), hits.sum(), images]).double()


def write_cases(folder: Path, scores: Scores) -> None:
    """`cases.csv`: a row for every case and class. Their means are in the run's `summary.json`."""
    rows = metrics.case_rows(scores.cases, scores.classes)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(folder / "cases.csv", text.getvalue().encode())
