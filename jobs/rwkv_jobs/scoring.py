"""Scores of a model over one part of a data set, shared by validation and evaluation."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rwkv_jobs.case_scores import Predicted, Scorers, Scoring
from rwkv_jobs.confidence import Confidence
from rwkv_jobs.gallery import Gallery, KeptMasks
from rwkv_jobs.networks import Networks
from rwkv_jobs.volume_masks import VolumeMasks
from rwkv_jobs.worker import Worker, autocast
from rwkvctl.base.errors import JobFailedError
from rwkvctl.base.files import write_bytes
from rwkvctl.base.processes import available_cpus
from rwkvctl.config.specs.parts import DataSpec
from rwkvctl.data.feed.cases import Place, SliceLoader
from rwkvctl.data.feed.loaders import ClassificationEvalLoader
from rwkvctl.data.feed.model_input import to_input
from rwkvctl.data.store.case_ids import cases_of
from rwkvctl.data.store.case_reader import reader_for
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.reader import Reader
from rwkvctl.launch.heartbeat import mark
from rwkvctl.models.bundle import VolumeInput
from rwkvctl.models.sureness import Sureness, ranks, spearman
from rwkvctl.training import metrics
from rwkvctl.training.calibration import Calibration
from rwkvctl.training.folds import by_fold
from rwkvctl.training.intervals import reliability
from rwkvctl.training.metrics import USUAL, Choices


@dataclass(frozen=True)
class Scores:
    """Scores of every case, in the order of the split, and their summary."""

    cases: dict[str, list[metrics.ClassScore]]
    classes: list[str]
    summary: dict[str, Any]
    choices: metrics.Choices = metrics.USUAL
    groups: dict[str, str | None] = field(default_factory=dict)
    """Of each case its patient, sequence or video, if the data set says."""
    sureness: dict[str, Sureness] = field(default_factory=dict)
    """Of each case how sure the model is of it; empty where probabilities were not looked at."""
    calibration: Calibration | None = None
    fold_of: dict[str, int] | None = None
    """Of a cross-validation the fold in which each case was held out."""
    by_region: bool = False
    """Whether `classes` are nnU-Net's regions, and not what the model decides between."""

    def by_fold(self, fold_of: dict[str, int] | None) -> Scores:
        """With the means of each fold and how they spread, where the cases are those of folds."""
        if fold_of is None:
            return self
        found = by_fold(self.cases, self.classes, self.choices, fold_of)
        return replace(self, fold_of=fold_of, summary=self.summary | {"folds": found})

    def mean(self, name: str) -> float:
        """The mean over classes of one measure, for example `dsc_strict`; 0 when nothing could be counted."""
        value = self.summary["mean"][name]
        return 0.0 if value is None else value

    def metrics(self, prefix: str) -> dict[str, float]:
        """Flat names for tracking."""
        return metrics.flat_metrics(self.summary, prefix)


class Probabilities(NamedTuple):
    """How the probabilities of a model are looked at: divided by its temperature; whether another is looked for."""

    temperature: float = 1.0
    fit: bool = False


class CaseScorer:
    """Scores a part with all workers: rank r takes the cases r::world_size, none twice.

    Loader processes decode and resize slices, the network takes them in batches across cases, and scores are computed
    in processes of their own: `data.workers` of each, none for little data. They stay until `close`, for the next
    model. The scores are those of one case at a time.
    """

    def __init__(
        self,
        manifest: Manifest,
        data: DataSpec,
        part: str,
        me: Worker,
        *,
        hd95: bool,
        choices: Choices = USUAL,
        ids: list[str] | None = None,
        volumes: VolumeInput | None = None,
    ):
        """ids: the cases to score, where they are not those of one part of one split. volumes: how a network over three
        axes sees them; cases are then whole volumes, also where the part has their slices. Of `Networks` that were
        loaded each has its own."""
        self.volumes = volumes
        self.manifest, self.me, self.hd95, self.choices = manifest, me, hd95, choices
        ids = manifest.ids(data.split or manifest.default_split, part) if ids is None else ids
        self.ids = ids if volumes is None else cases_of(ids)
        self.reader = reader_for(manifest, self.ids[me.rank :: me.world_size])
        processes = processes_for(self.reader, data)
        regions = tuple(manifest.regions.values())
        scoring = Scoring(self.reader, len(manifest.classes), manifest.ignore_index, hd95, choices, regions)
        self.scorers = Scorers(scoring, processes)
        batch = SLICES[me.device.type]
        self.slices = SliceLoader(self.reader, image_size=data.image_size, batch=batch, workers=processes)

    def score(
        self,
        model: nn.Module | Networks,
        *,
        gallery: Gallery | None = None,
        precision: str = "fp32",
        probabilities: Probabilities | None = None,
    ) -> Scores:
        """The network runs under autocast of `precision`; the gallery gets the cases that it chooses of all; with
        `probabilities` the scores tell how far the model's can be believed."""
        networks = model if isinstance(model, Networks) else Networks([model], volumes=[self.volumes])
        if gallery is None:
            return self._score(networks, precision, None, probabilities)
        with closing(KeptMasks()) as kept:
            scores = self._score(networks, precision, kept, probabilities)
            gallery.see(scores.cases, self.me.gather(gallery.look(scores.cases, self.reader, kept)))
        if self.me.is_main:
            gallery.write(scores.cases, scores.classes)
        return scores

    def _score(
        self, networks: Networks, precision: str, kept: KeptMasks | None, probabilities: Probabilities | None
    ) -> Scores:
        for network in networks.networks:
            self.me.share_buffers(network)
            network.eval()
        own: dict[str, tuple[list[metrics.ClassScore], str | None]] = {}
        confidence = None
        if probabilities is not None:
            ignored = self.manifest.ignore_index
            confidence = Confidence(self.reader, probabilities.temperature, fit=probabilities.fit, ignore_index=ignored)
        with lost_loaders():
            if any(networks.volumes):
                of_volumes = VolumeMasks(networks, self.reader, self.me, precision, len(self.manifest.classes))
                predicted = of_volumes.each(confidence)
            else:
                predicted = predict_cases(networks, self.slices, self.reader, self.me, precision, confidence)
            for case in self.scorers.each(predicted if kept is None else kept.keeping(predicted)):
                own[case.key] = case.scores, case.group
                mark("evaluation")
        everyone: dict[str, tuple[list[metrics.ClassScore], str | None]] = {}
        for theirs in self.me.gather(own):
            everyone |= theirs
        assert sorted(everyone) == sorted(self.ids), "every case is scored exactly once"
        cases = {key: everyone[key][0] for key in self.ids}
        groups = {key: everyone[key][1] for key in self.ids}
        classes = self.manifest.scored
        summary = metrics.summarise(cases, classes, self.choices)
        if self.hd95:  # else a validation among many
            summary |= reliability(cases, classes, self.choices, groups)
        scores = Scores(cases, classes, summary, self.choices, groups, by_region=bool(self.manifest.regions))
        return scores if confidence is None else self.with_confidence(scores, confidence)

    def with_confidence(self, scores: Scores, confidence: Confidence) -> Scores:
        """With what all workers have seen of the probabilities."""
        [(calibration, sureness), *others] = self.me.gather((confidence.calibration, confidence.cases()))
        for theirs, of_theirs in others:
            calibration.merge(theirs)
            sureness |= of_theirs
        sureness = {key: sureness[key] for key in self.ids}
        found = {"calibration": calibration.as_fields(), "review": review(scores.cases, sureness)}
        return replace(scores, summary=scores.summary | found, sureness=sureness, calibration=calibration)

    def close(self) -> None:
        """End all processes."""
        self.slices.close()
        self.scorers.close()


def score_cases(
    model: nn.Module | Networks,
    manifest: Manifest,
    data: DataSpec,
    part: str,
    me: Worker,
    *,
    hd95: bool,
    gallery: Gallery | None = None,
    precision: str = "fp32",
    choices: Choices = USUAL,
    probabilities: Probabilities | None = None,
    ids: list[str] | None = None,
    volumes: VolumeInput | None = None,
) -> Scores:
    """Score a part once, as `CaseScorer`."""
    if isinstance(model, Networks):
        volumes = next((own for own in model.volumes if own is not None), None)
    scorer = CaseScorer(manifest, data, part, me, hd95=hd95, choices=choices, ids=ids, volumes=volumes)
    with closing(scorer):
        return scorer.score(model, gallery=gallery, precision=precision, probabilities=probabilities)


SLICES = {"cuda": 16, "cpu": 2}
"""Slices that the network takes at once, whichever cases they are of. On a CPU few stay in its cache: 16 take 1.3 times
as long as eight times 2 (T, 224 px, one thread)."""

LITTLE_DATA = 256 << 20
"""Bytes of decoded samples that are scored sooner in this process than others are started: some five seconds' worth."""


def processes_for(reader: Reader, data: DataSpec) -> int:
    """How many processes load the samples of a reader: none where they would not pay."""
    return 0 if reader.decoded_bytes < LITTLE_DATA else min(data.workers, available_cpus() - 1)


@contextmanager
def lost_loaders() -> Iterator[None]:
    """One line for a loader process that is gone, which torch and the pipe to it tell in several ways."""
    try:
        yield
    except (RuntimeError, EOFError, ConnectionError) as error:
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise JobFailedError("a process that loads cases ended early, perhaps for want of memory") from None


def predict_cases(
    networks: Networks,
    slices: SliceLoader,
    reader: Reader,
    me: Worker,
    precision: str,
    confidence: Confidence | None = None,
) -> Iterator[Predicted]:
    """The row of every case and its mask at its native size, (H, W) of an image and (D, H, W) of a volume."""
    volume: NDArray[np.uint8] | None = None
    for images, places in slices:
        mark("evaluation")
        watch = None if confidence is None else partial(look, confidence, places)
        with autocast(precision, me.device):
            masks = networks.masks(images, places, reader, me.device, watch)
        for place, mask in zip(places, masks, strict=True):
            if place.depth == 0:
                yield place.row, mask
                continue
            if place.z == 0:
                volume = np.empty((place.depth, place.height, place.width), np.uint8)
            assert volume is not None, "slices come in their order"
            volume[place.z] = mask
            if place.last:
                yield place.row, volume


def look(confidence: Confidence, places: list[Place], first: int, logits: Tensor, masks: Tensor) -> None:
    """Show logits and masks of some of a batch's slices, outside autocast."""
    with torch.autocast(logits.device.type, enabled=False):
        confidence.see(places[first : first + len(logits)], logits, masks)


def has_foreground(manifest: Manifest, data: DataSpec, part: str, me: Worker) -> bool:
    """Whether any mask of a part contains foreground; reading stops at the first that does."""
    keys = manifest.ids(data.split or manifest.default_split, part)[me.rank :: me.world_size]
    reader = reader_for(manifest, keys)
    masks = (reader.mask(row) for row in range(len(reader)))
    return any(me.gather(any(((mask > 0) & (mask != manifest.ignore_index)).any() for mask in masks)))


def images_of_part(
    models: Sequence[nn.Module],
    manifest: Manifest,
    data: DataSpec,
    part: str,
    me: Worker,
    batch: int,
    ids: list[str] | None = None,
) -> tuple[Reader, ClassificationEvalLoader]:
    """This worker's images of a part of a classification set, or of `ids`, and their batches for `models`, which are
    made ready."""
    for model in models:
        me.share_buffers(model)
        model.eval()
    split = data.split or manifest.default_split
    every = manifest.ids(split, part) if ids is None else ids
    own = reader_for(manifest, every[me.rank :: me.world_size])
    loader = ClassificationEvalLoader(
        manifest,
        split=split,
        part=part,
        image_size=data.image_size,
        batch=batch,
        rank=me.rank,
        world_size=me.world_size,
        workers=processes_for(own, data),
        ids=every,
    )
    return own, loader


@torch.no_grad()
def count_accuracy(
    model: nn.Module, manifest: Manifest, data: DataSpec, part: str, me: Worker, *, batch: int, precision: str = "auto"
) -> dict[str, float]:
    """Top-1 and top-5 in percent over a part of a classification set, every image counted once."""
    _, loader = images_of_part([model], manifest, data, part, me, batch)
    split = data.split or manifest.default_split
    counts = torch.zeros(3, dtype=torch.float64, device=me.device)
    with closing(loader), lost_loaders():
        for images, targets, _ in loader:
            mark("evaluation")
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
    rows = metrics.case_rows(scores.cases, scores.classes, scores.choices)
    if scores.fold_of:
        rows = [row | {"fold": scores.fold_of[row["case"]]} for row in rows]
    if scores.sureness:
        rows = [row | extra for row, extra in zip(rows, sureness_columns(scores), strict=True)]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(folder / "cases.csv", text.getvalue().encode())


def sureness_columns(scores: Scores) -> Iterator[dict[str, Any]]:
    """Of every case and class, in the order of the table: the predicted DSC of the class, and of the case the entropy
    and its place among those to look at, 1 the first. Of a region no DSC is predicted."""
    places = ranks(scores.sureness)
    for key, of_classes in scores.cases.items():
        found = scores.sureness[key]
        for score in of_classes:
            predicted = None if scores.by_region else found.predicted_dsc[score.class_id - 1]
            yield {"predicted_dsc": predicted, "entropy": found.entropy, "review_rank": places[key]}


def review(cases: dict[str, list[metrics.ClassScore]], sureness: dict[str, Sureness]) -> dict[str, Any]:
    """How well what the model thinks of its masks ranks the cases: Spearman's correlation with their true mean DSC, of
    the predicted DSC and of the entropy (less is better), and the mean error of the predicted DSC."""
    known = {
        key: [score.strict_dsc for score in scores if score.strict_dsc is not None] for key, scores in cases.items()
    }
    true = {key: sum(found) / len(found) for key, found in known.items() if found}
    predicted = {key: sureness[key].mean_dsc for key in true}
    found: dict[str, Any] = {
        "cases": len(true),
        "spearman": spearman([*predicted.values()], [*true.values()]),
        "mean_error": sum(predicted[key] - true[key] for key in true) / len(true) if true else None,
    }
    entropies = {key: value for key in true if (value := sureness[key].entropy) is not None}
    found["spearman_entropy"] = spearman([*entropies.values()], [true[key] for key in entropies])
    return found
