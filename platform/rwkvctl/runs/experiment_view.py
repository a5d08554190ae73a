"""What a person sees first of an experiment in MLflow: its runs as a table, best first, with the columns that matter.

MLflow opens an experiment on its page for language models. A link can name the page of runs, and a view of it that is
kept in a tag of the experiment (as the `Share` button of MLflow makes one).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from mlflow import MlflowClient

PRIMARY = "best_val/dsc_strict/mean"
"""Of the best weights on the validation part; MLflow sorts and searches by it."""
COLUMNS = (
    "attributes.`Source`",
    "attributes.`Models`",
    "params.`job`",
    "params.`data.dataset`",
    "params.`model.name`",
    "params.`seed`",
    "params.`train.epochs`",
    "params.`optimizer.lr`",
    f"metrics.`{PRIMARY}`",
    "metrics.`test/dsc_strict/mean`",
    "metrics.`train/loss`",
)
LOCAL = "http://127.0.0.1:5000"
"""Where `rwkvctl ui` serves a database of this machine, unless it is told another port."""
KEY = "rwkvctl"
VIEW_TAG = f"mlflow.sharedViewState.{KEY}"
CURVES = ("train/loss", "train/lr", "val/dsc_strict/mean")
"""What an experiment's charts begin with."""
SCORES = ("dsc_strict", "dsc_official", "hd95_vox_strict", "hd95_vox_official", "hd95_mm_strict", "hd95_mm_official")
"""Of the best weights a run has one value each, which its table shows better: their charts are folded up."""


def curve(metric: str) -> dict[str, Any]:
    """A chart with the metric's curve of every run."""
    return {
        "type": "LINE",
        "uuid": f"{KEY}-{metric}",
        "metricSectionId": KEY,
        "deleted": False,
        "isGenerated": True,
        "metricKey": metric,
        "displayName": metric,
        "runsCountToCompare": 10,
        "lineSmoothness": 0,
        "xAxisKey": "step",
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }


def section(uuid: str, name: str, *, unfolded: bool) -> dict[str, Any]:
    return {"uuid": uuid, "name": name, "display": unfolded, "isReordered": True}


VIEW: dict[str, Any] = {
    "searchFilter": "",
    "orderByKey": "attributes.start_time",
    "orderByAsc": False,
    "startTime": "ALL",
    "lifecycleFilter": "Active",
    "selectedColumns": list(COLUMNS),
    "compareRunCharts": [curve(metric) for metric in CURVES],
    "compareRunSections": [
        section(KEY, "training", unfolded=True),
        section(f"{KEY}-train", "train", unfolded=True),
        section(f"{KEY}-val", "val/dsc_strict", unfolded=True),
        *(
            section(f"{KEY}-{part}-{score}", f"{part}/{score}", unfolded=False)
            for part in ("best_val", "test")
            for score in SCORES
        ),
    ],
    "isAccordionReordered": True,
}
TAGS = {
    VIEW_TAG: json.dumps(VIEW),
    "mlflow.experiment.primaryMetric.name": PRIMARY,
    "mlflow.experiment.primaryMetric.greaterIsBetter": "True",
    "mlflow.experimentKind": "custom_model_development",
}


def dress(client: MlflowClient, experiment: str) -> None:
    """Give an experiment the view and the primary metric, where nobody has given it others."""
    tags = client.get_experiment(experiment).tags
    for key, value in TAGS.items():
        if tags.get(key) != value and (key == VIEW_TAG or key not in tags):
            client.set_experiment_tag(experiment, key, value)


def of_experiment(server: str, experiment: str) -> str:
    """The address of an experiment's runs."""
    place = f"{server.rstrip('/')}/#/experiments/{quote(experiment)}/runs"
    return f"{place}?workflowType=machine_learning&viewStateShareKey={KEY}"


def of_run(server: str, experiment: str, run_id: str) -> str:
    """The address of one run."""
    return f"{server.rstrip('/')}/#/experiments/{quote(experiment)}/runs/{quote(run_id)}?workflowType=machine_learning"
