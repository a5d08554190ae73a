"""What becomes of the models of a cross-validation: one ensemble, scores of every case by the model that has not seen
it, and a registered version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rwkv_jobs import evaluate
from rwkv_jobs.fit import register
from rwkv_jobs.launch import launch
from rwkvctl.base.errors import JobFailedError
from rwkvctl.base.files import write_json
from rwkvctl.config.specs.jobs import EvaluateSpec, TuneSpec
from rwkvctl.config.specs.objectives import SIZES
from rwkvctl.data.store.splits import FOLD
from rwkvctl.models import bundle, members
from rwkvctl.registry import measured
from rwkvctl.registry.release import SUMMARY
from rwkvctl.runs import mirror
from rwkvctl.runs.journal import say


def finish(spec: TuneSpec, run_dir: Path, others: list[dict[str, Any]]) -> dict[str, Any]:
    """Put the models of all folds together, score them, and register them as one. `others` are the trials that were
    not trained to their end."""
    assert spec.folds is not None
    found = models(spec, run_dir, others)
    members.save(run_dir / "model", found, {"run": run_dir.name, "split": spec.folds})
    say(run_dir, f"model: an ensemble of {len(found)}; scoring every case by the model that has not seen it")
    launch(evaluate.score, evaluation(spec, run_dir), run_dir)
    scores = json.loads((run_dir / SUMMARY).read_text())
    write_json(run_dir / SUMMARY, {"val": scores, "members": len(found)} | costs(found))
    uri = register(spec, run_dir)
    return {"cross_validation": scores, "model": f"{mirror.address(run_dir)}/model", "model_uri": uri}


def models(spec: TuneSpec, run_dir: Path, others: list[dict[str, Any]]) -> dict[str, Path]:
    """The model folder of each fold, by what it is called in the ensemble: `fold0`, `fold1` and so on."""
    by_split: dict[str, Path] = {}
    for info_file in sorted((run_dir / "trials").glob("*/model/model.json")):
        by_split[measured.split_of(bundle.read_info(info_file.parent))] = info_file.parent
    wanted = [str(split) for split in spec.space.params["data.split"].values() or ()]
    if missing := [split for split in wanted if split not in by_split]:
        whys = {str(other.get("data.split")): str(other["why"]) for other in others}
        raise JobFailedError(
            f"{missing[0]}: has no model ({whys.get(missing[0], 'it was not trained')}), so there is no ensemble; the "
            f"models of the other folds are in {run_dir / 'trials'}"
        )
    return {f"{FOLD.strip('_')}{number}": by_split[split] for number, split in enumerate(wanted)}


def costs(found: dict[str, Path]) -> dict[str, int]:
    """Parameters and MACs of all members together."""
    each = [json.loads((folder.parent / SUMMARY).read_text()) for folder in found.values()]
    return {name: sum(one[name] for one in each) for name in SIZES}


def evaluation(spec: TuneSpec, run_dir: Path) -> EvaluateSpec:
    """The cross-validation as an evaluation of the ensemble; one worker without a cluster works in this process."""
    cluster = spec.base.cluster.model_copy(update={"workers": 1, "nodes": None, "gpus_per_node": None})
    if cluster.address is None:
        cluster = cluster.model_copy(update={"launcher": "process"})
    return EvaluateSpec(
        name=run_dir.name,
        seed=spec.seed,
        storage=spec.storage,
        cluster=cluster,
        tracking=spec.tracking,
        model=run_dir.name,
        data=spec.base.data.path,
        part="val",
        loader_workers=spec.base.data.workers,
    )
