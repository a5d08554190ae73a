"""What a classifier says of the images of a part, and the files of its evaluation."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import nn

from rwkv_jobs.networks import Networks
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
    networks: Networks, manifest: Manifest, data: DataSpec, ids: list[str], me: Worker, *, precision: str
) -> Answers:
    """Of every image once, in the order of `ids`, on every worker: by the mean of the probabilities of all networks, or
    by that network alone which is the image's."""
    if networks.member_of is None:
        return _answers(networks.networks, manifest, data, ids, me, precision)
    of = networks.member_of
    parts = [
        _answers([network], manifest, data, [key for key in ids if of[key] == number], me, precision)
        for number, network in enumerate(networks.networks)
    ]
    return joined(parts, ids)


def joined(parts: Sequence[Answers], ids: Sequence[str]) -> Answers:
    """The answers of several networks about different images, in the order of `ids`."""
    rows = {key: (part, row) for part in parts for row, key in enumerate(part.keys)}
    own = [rows[key] for key in ids]
    return Answers(
        list(ids),
        np.array([part.labels[row] for part, row in own]),
        np.array([part.probabilities[row] for part, row in own]),
        [part.groups[row] for part, row in own],
        np.array([part.in_top5[row] for part, row in own if part.in_top5 is not None]),
    )


def _answers(
    networks: Sequence[nn.Module], manifest: Manifest, data: DataSpec, ids: list[str], me: Worker, precision: str
) -> Answers:
    own, loader = images_of_part(networks, manifest, data, "", me, BATCH, ids)
    found: dict[str, tuple[int, list[float], bool]] = {}
    with closing(loader), lost_loaders():
        for images, targets, keys in loader:
            mark("evaluation")
            with autocast(precision, me.device):
                each = [network(to_input(images, me.device)) for network in networks]
            mean = torch.stack([torch.softmax(logits.double(), dim=1) for logits in each]).mean(dim=0)
            ranked = each[0] if len(each) == 1 else mean  # logits tell apart what rounds to one probability
            best = ranked.topk(min(5, ranked.shape[1]), dim=1).indices
            in_top5 = (best == targets.to(ranked.device).unsqueeze(1)).any(dim=1).tolist()
            probabilities = mean.cpu().numpy().round(DIGITS).tolist()
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


def write_table(folder: Path, answers: Answers, classes: list[str], fold_of: Mapping[str, int] | None = None) -> None:
    """`cases.csv`: a row for every image."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    shown = classes if len(classes) <= MOST_COLUMNS else []
    writer.writerow(
        [
            "case",
            "class",
            "predicted",
            "right",
            "probability",
            *(f"p_{name}" for name in shown),
            *(["fold"] if fold_of else []),
        ]
    )
    for key, label, chosen, row in zip(
        answers.keys, answers.labels.tolist(), answers.chosen.tolist(), answers.probabilities.tolist(), strict=True
    ):
        each = [f"{value:.6f}" for value in row[: len(shown)]]
        writer.writerow(
            [
                key,
                classes[label],
                classes[chosen],
                int(label == chosen),
                f"{row[chosen]:.6f}",
                *each,
                *([fold_of[key]] if fold_of else []),
            ]
        )
    write_bytes(folder / TABLE, text.getvalue().encode())
