"""The card of a version: what it is for, what it was trained on and how good it is, as Markdown and as JSON.

Markdown with a YAML head, as the Hugging Face hub reads it; the same text is the version's description in MLflow.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rwkvctl.models.bundle import BundleInfo, VolumeInput
from rwkvctl.registry import measured
from rwkvctl.registry.lineage import Origin, lines, origin, resolve
from rwkvctl.registry.tags import fields, mapping
from rwkvctl.runs.mlflow_client import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

SHOWN = (
    "accuracy",
    "balanced_accuracy",
    "auroc",
    "dsc_strict",
    "dsc_official",
    "hd95_mm_strict",
    "hd95_vox_strict",
    "hd95_vox_official",
    "ece",
    "ece_raw",
)
LONGEST_DESCRIPTION = 4900
"""Characters; a server on PostgreSQL takes 5,000."""
CONVENTIONS = (
    "`strict`: a class that is in neither mask is not counted, one that is in one of them only scores DSC 0 and has no "
    "HD95. `official`: as the paper's code counts. HD95 in voxels, or in mm where the scan has a spacing. "
    "`ece`: the calibration error of its probabilities around the foreground, in 15 bins; `ece_raw` without the "
    "temperature."
)
OF_CLASSES = (
    "`balanced_accuracy`: the mean of the classes' sensitivities. `auroc`: the mean over classes, each against all "
    "others. `ece`: the calibration error of the chosen class's probability, in 15 bins."
)
INTENDED = (
    "Research: {what} of {of} like those of the training data, by people who can judge the result. "
    "It is not a medical device, and no clinical decision may rest on it alone."
)


@dataclass(frozen=True)
class Score:
    """A mean over cases; `low` and `high` are the ends of its 95 % bootstrap interval, null without the cases."""

    part: str
    metric: str
    value: float
    cases: int | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Card:
    """What a card says."""

    model: str
    created: str
    """When it was registered; empty for a model that is not."""
    network: dict[str, Any]
    classes: list[str]
    image_size: Any
    volumes: dict[str, Any]
    """What a network over three axes sees, as `bundle.VolumeInput`; empty for one of images."""
    dataset: str
    title: str
    """Of the data set."""
    licence: str
    """Of the data; empty where it is the owner's to say."""
    fingerprint: str
    split: str
    parameters: int | None
    macs: int | None
    scores: list[Score]
    limits: list[str]
    origin: Origin
    kind: str = "segmentation"


def card(reference: str, tracking_uri: str) -> Card:
    """Of `models:/NAME/VERSION` or `models:/NAME@ALIAS`."""
    client = connect(tracking_uri)
    return of_version(client, resolve(client, reference))


def of_version(client: MlflowClient, version: ModelVersion) -> Card:
    tags = fields(version.tags)
    dataset = tags.get("dataset", "")
    title, licence, classes = data_facts(dataset)
    scores = scores_of(version)
    return Card(
        model=f"models:/{version.name}/{version.version}",
        created=time.strftime("%Y-%m-%d", time.gmtime(version.creation_timestamp / 1000)),
        network=mapping(tags.get("model", "")),
        classes=as_list(tags.get("classes", "")) or classes,
        image_size=as_number(tags.get("image_size", "")),
        volumes=mapping(tags.get("volumes", "")),
        dataset=dataset,
        title=title,
        licence=licence,
        fingerprint=tags.get("fingerprint", ""),
        split=tags.get("split", ""),
        parameters=as_number(tags.get("parameters", "")),
        macs=as_number(tags.get("macs_paper", "")),
        scores=scores,
        limits=limits_of(version, scores),
        origin=origin(client, version, seen=()),
        kind=tags.get("kind", "segmentation"),
    )


def of_bundle(info: BundleInfo, name: str, parameters: int) -> Card:
    """Of a model that is not registered: its scores and its training are not known."""
    title, licence, _ = data_facts(info.dataset)
    begun = info.extra.get("encoder") or {}
    encoder = Origin(str(begun.get("reference", "")), weights=str(begun.get("sha256", ""))) if begun else None
    return Card(
        model=name,
        created="",
        network=info.model,
        classes=info.classes,
        image_size=info.image_size,
        volumes={} if info.volumes is None else info.volumes.model_dump(mode="json"),
        dataset=info.dataset,
        title=title,
        licence=licence,
        fingerprint=info.fingerprint,
        split=measured.split_of(info),
        parameters=parameters,
        macs=None,
        scores=[],
        limits=["Its scores are not recorded here."],
        origin=Origin(
            name,
            weights=info.weights_sha256,
            run=str(info.extra.get("run", "")),
            dataset=info.dataset,
            fingerprint=info.fingerprint,
            split=measured.split_of(info),
            encoder=encoder,
        ),
        kind=info.kind,
    )


def data_facts(dataset: str) -> tuple[str, str, list[str]]:
    """Title, licence and classes of a data set that `rwkvctl data list` knows."""
    from rwkvctl.data.convert import formats

    if dataset not in formats.NAMES:
        return "", "", []
    known = formats.get(dataset).DATASET
    return known.title, known.licence, list(known.classes)


def scores_of(version: ModelVersion) -> list[Score]:
    """The means of the parts that it was scored on, its own data only; with intervals as the evaluation had them."""
    found = []
    for part in ("test", "val"):
        if (scores := measured.scores(version.tags, f"{part}/")) is None:
            continue
        for metric in SHOWN:
            key = f"{part}/{metric}/mean"
            if key in scores.values:
                interval = scores.intervals.get(key, (None, None))
                found.append(Score(part, metric, scores.values[key], scores.measured.cases, *interval))
    return found


def limits_of(version: ModelVersion, scores: list[Score]) -> list[str]:
    """What the card has to warn of, from what is recorded and what is not."""
    found = []
    tested = [score for score in scores if score.part == "test"]
    if not tested:
        found.append("It was not scored on test cases; validation cases were used to choose its weights.")
    note = measured.note_of(version.tags, "test/dsc_strict/mean")
    if tested and note is not None and note.trained_on is None:
        found.append("It is not known whether the test cases were trained on.")
    if note is not None and note.trained_on:
        found.append(f"{note.trained_on} of the {note.cases} test cases were trained on: no valid test.")
    if tested and (note is None or note.cases is None or note.cases < 50):
        count = "few" if note is None or note.cases is None else note.cases
        found.append(f"Scored on {count} test cases of one data set: other scanners, sites and patients may differ.")
    found.append("Nothing is known about images of another kind, orientation or intensity than the training data's.")
    return found


def as_json(card: Card) -> str:
    return json.dumps(asdict(card), indent=2, default=str)


def as_markdown(card: Card, *, spec: bool = True, head: str | None = None, use: str | None = None) -> str:
    """Under 5,000 characters without the spec.

    head, use: what to say in place of the YAML head and of the command that uses the model.
    """
    name = card.model.removeprefix("models:/")
    what = "classification" if card.kind == "classifier" else "segmentation"
    conventions = OF_CLASSES if card.kind == "classifier" else CONVENTIONS
    answer = "classes" if card.kind == "classifier" else "masks"
    if head is None:
        fields = {
            "library_name": "rwkvctl",
            "pipeline_tag": f"image-{what}",
            "tags": ["rwkv-unet", "medical-imaging", *([card.dataset] if card.dataset else [])],
        }
        head = "".join(f"{key}: {json.dumps(value)}\n" for key, value in fields.items())
    data = f"{card.title} (`{card.dataset}`)" if card.title else f"`{card.dataset or 'unknown'}`"
    size = "not recorded" if card.parameters is None else f"{card.parameters:,} parameters"
    macs = (
        ""
        if card.macs is None
        else f", {card.macs / 1e9:.3f} GMACs {'a patch' if card.volumes else 'an image'} (the paper's convention)"
    )
    registered = f", registered {card.created}" if card.created else ""
    parts = [
        f"---\n{head}---",
        f"# {name}",
        f"{card.network.get('name', 'A network')}{registered}: {size}{macs}.",
        f"## Intended use\n\n{INTENDED.format(what=what, of='scans' if card.volumes else 'images')}",
        use or f"    rwkvctl predict {card.model} {'SCANS' if card.volumes else 'IMAGES'} --out {answer}/",
        "## Data\n\n"
        f"{data}, split `{card.split or 'unknown'}`, fingerprint `{card.fingerprint[:12] or 'unknown'}`. "
        f"Licence of the data: {card.licence or 'not known to rwkvctl; ask its owner'}. "
        f"{seen(card)}. Classes: {', '.join(card.classes) or 'see model.json'}.",
        f"## Scores\n\n{table(card.scores)}\n\n{conventions}",
        "## Limits\n\n" + "\n".join(f"* {line}" for line in card.limits),
        "## Where it comes from\n\n" + "\n".join(f"    {line}" for line in lines(card.origin)),
    ]
    if spec and card.origin.spec:
        parts.append(f"## Spec of its training\n\n```json\n{json.dumps(card.origin.spec, indent=1)}\n```")
    return "\n\n".join(parts) + "\n"


def seen(card: Card) -> str:
    """What the network is given."""
    if not card.volumes:
        return f"Images of {card.image_size} px"
    return f"Whole volumes {VolumeInput.model_validate(card.volumes).in_words()}"


def table(scores: list[Score]) -> str:
    if not scores:
        return "None is recorded."
    rows = ["| part | figure | mean | 95 % interval | cases |", "|---|---|---|---|---|"]
    for score in scores:
        interval = "" if score.low is None or score.high is None else f"{score.low:.4f} to {score.high:.4f}"
        rows.append(f"| {score.part} | {score.metric} | {score.value:.4f} | {interval} | {score.cases or ''} |")
    return "\n".join(rows)


def describe(client: MlflowClient, version: ModelVersion) -> None:
    """Let MLflow show the card as the version's description."""
    text = as_markdown(of_version(client, version), spec=False).partition("---\n\n")[2]
    client.update_model_version(version.name, str(version.version), text[:LONGEST_DESCRIPTION])


def as_list(text: str) -> list[str]:
    try:
        found = json.loads(text)
    except ValueError:
        return []
    return [str(item) for item in found] if isinstance(found, list) else []


def as_number(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
