"""What a classifier says of the images of a part, and the files of its evaluation."""

from __future__ import annotations

import csv
import io
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import nn

from rwkv_jobs.scoring import images_of_part, lost_loaders
from rwkv_jobs.worker import Worker, autocast
from rwkvctl.base.files import write_bytes
from rwkvctl.config.specs.parts import DataSpec
from rwkvctl.data.feed.model_input import to_input
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.launch.heartbeat import mark
from rwkvctl.registry.cases import TABLE
from rwkvctl.training.classification import Answers

BATCH = 64
DIGITS = 6
"""Of a probability: the others change with the size of a batch, and so with the number of workers."""
MOST_COLUMNS = 50
"""Classes of which the table of images has a column each."""


@torch.no_grad()
def answers_of(
    model: nn.Module, manifest: Manifest, data: DataSpec, part: str, me: Worker, *, precision: str
) -> Answers:
    """Of every image once, in the order of the part, on every worker."""
    ids = manifest.ids(data.split or manifest.default_split, part)
    own, loader = images_of_part(model, manifest, data, part, me, BATCH)
    found: dict[str, tuple[int, list[float], bool]] = {}
    with closing(loader), lost_loaders():
        for images, targets, keys in loader:
            mark("evaluation")
            with autocast(precision, me.device):
                logits = model(to_input(images, me.device))
            labels = targets.to(logits.device)
            best = logits.topk(min(5, logits.shape[1]), dim=1).indices
            in_top5 = (best == labels.unsqueeze(1)).any(dim=1).tolist()
            probabilities = torch.softmax(logits.double(), dim=1).cpu().numpy().round(DIGITS).tolist()
            found |= dict(zip(keys, zip(targets.tolist(), probabilities, in_top5, strict=True), strict=True))
    groups = {own.key(row): group_of(own.meta(row).get("group_id")) for row in range(len(own))}
    everyone: dict[str, tuple[int, list[float], bool]] = {}
    for theirs, of_theirs in me.gather((found, groups)):
        everyone |= theirs
        groups |= of_theirs
    assert sorted(everyone) == sorted(ids), "every image is scored exactly once"
    true, certain, hits = (np.array([everyone[key][column] for key in ids]) for column in range(3))
    return Answers(ids, true, certain, [groups[key] for key in ids], hits)


def group_of(name: str | None) -> str | None:
    """The patient or sequence of an image; the hash of its bytes stands where none is known."""
    return None if name is None or name.startswith("sha256:") else name


def write_table(folder: Path, answers: Answers, classes: list[str]) -> None:
    """`cases.csv`: a row for every image."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    shown = classes if len(classes) <= MOST_COLUMNS else []
    writer.writerow(["case", "class", "predicted", "right", "probability", *(f"p_{name}" for name in shown)])
    for key, label, chosen, row in zip(
        answers.keys, answers.labels.tolist(), answers.chosen.tolist(), answers.probabilities.tolist(), strict=True
    ):
        each = [f"{value:.6f}" for value in row[: len(shown)]]
        writer.writerow([key, classes[label], classes[chosen], int(label == chosen), f"{row[chosen]:.6f}", *each])
    write_bytes(folder / TABLE, text.getvalue().encode())
