"""From options to a spec: what a run may be continued with, and which part of which split is meant."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from rwkvctl.base.errors import UserError
from rwkvctl.cli import assemble
from rwkvctl.config.specs.jobs import EvaluateSpec, FinetuneSpec, TuneSpec
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.convert.synth import phantom
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.runs import folder as run_folder


@pytest.fixture(scope="module")
def polyps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = phantom.write_polyps(tmp_path_factory.mktemp("raw") / "polyps", n=12, size=32)
    return prepare("folder", [raw], tmp_path_factory.mktemp("shards") / "polyps", seeds=[41]).root


# What a run can be continued with ------------------------------------------------------------------------------------


@pytest.fixture
def run(polyps: Path, home: Path) -> Path:
    """A run of the data set, as the command line makes it."""
    made = assemble.training_spec("finetune", None, str(polyps), {"name": "first"}, [], None)
    return run_folder.create(made, str(home / "runs"))


def resumed(options: dict[str, Any], *assignments: str, data: Path | None = None) -> FinetuneSpec:
    spec = assemble.training_spec("finetune", None, data and str(data), options, list(assignments), "first")
    assert isinstance(spec, FinetuneSpec)
    return spec


@pytest.mark.usefixtures("run")
def test_where_a_run_goes_on_may_change(polyps: Path, tmp_path: Path):
    options = assemble.training_options(workers=2, nodes=3, gpus_per_node=1, address="head:6379", name="first")
    moved = Path(shutil.copytree(polyps, tmp_path / "moved"))
    spec = resumed(options, "data.workers=0", data=moved)
    cluster = spec.cluster
    assert (cluster.workers, cluster.nodes, cluster.gpus_per_node, cluster.address) == (2, 3, 1, "head:6379")
    assert (spec.data.path, spec.data.workers, spec.name) == (str(moved), 0, "first")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"variant": "s"}, "model.name: rwkv_unet_b -> rwkv_unet_s"),
        ({"name": "other"}, "run first: cannot be renamed to 'other'"),
        ({"model": {"encoder_weights": "/nowhere/no.pth"}}, "model.encoder_weights: None -> /nowhere/no.pth"),
        ({"train": {"epochs": 1}}, "train.epochs: 300 -> 1"),
        ({"cluster": {"workers": 3}}, "train.batch_size 8 is not divisible by cluster.workers 3"),
    ],
)
def test_what_a_run_computes_may_not(run: Path, options: dict[str, Any], said: str):
    before = (run / "spec.yaml").read_bytes()
    with pytest.raises(UserError, match=re.escape(said)):
        resumed(options)
    assert (run / "spec.yaml").read_bytes() == before


def test_a_sweep_is_continued_in_its_own_space(polyps: Path, home: Path, tmp_path: Path):
    def sweep(resume: str | None, space: str | None, **options: Any) -> TuneSpec:
        return assemble.tune_spec(
            space, None, None if resume else str(polyps), options, [], resume, 3, None, None, None
        )

    run_folder.create(sweep(None, "ccm_hidden").model_copy(update={"name": "sweep"}), str(home / "runs"))
    assert sweep("sweep", None).trials == 3
    assert sweep("sweep", "ccm_hidden").space == sweep("sweep", None).space
    with pytest.raises(UserError, match="space 'nope' is unknown"):
        sweep("sweep", "nope")
    with pytest.raises(UserError, match="was started with another spec"):
        sweep("sweep", "decoder_kernel")
    with pytest.raises(UserError, match=re.escape("base.model.name: rwkv_unet_b -> rwkv_unet_s")):
        sweep("sweep", None, variant="s")


# Parts and splits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tolerances", "lesions", "meant"),
    [
        ([], None, {}),
        (["2"], True, {"nsd_tolerance_mm": 2.0, "lesions": True}),
        (["1.5mm", "3px"], False, {"nsd_tolerance_mm": 1.5, "nsd_tolerance_vox": 3.0, "lesions": False}),
    ],
)
def test_tolerances_are_said_with_their_unit(tolerances: list[str], lesions: bool | None, meant: dict[str, Any]):
    assert assemble.figure_options(tolerances, lesions) == meant


@pytest.mark.parametrize(
    ("tolerances", "said"),
    [
        (["2cm"], "--nsd-tolerance 2cm: must be a distance as 1.5mm, or 3px for pixels and voxels"),
        (["-1"], "--nsd-tolerance -1: must be a distance"),
        (["1mm", "2"], "--nsd-tolerance 2: there is one in mm already; give one of each"),
    ],
)
def test_a_tolerance_that_is_none_is_one_line(tolerances: list[str], said: str):
    with pytest.raises(UserError, match=re.escape(said)):
        assemble.figure_options(tolerances, None)


@pytest.mark.parametrize(
    ("part", "split", "split_rule", "meant", "note"),
    [
        (None, None, None, (None, None), ""),
        ("val", None, None, ("val", None), ""),
        ("val", "seed41", None, ("val", "seed41"), ""),
        (None, "seed41", None, (None, "seed41"), ""),
        ("val", "test", None, ("val", "test"), ""),
        (None, "val", None, ("val", None), "--part val"),
        (None, "val", "seed41", ("val", "seed41"), "--part val --split seed41"),
        (None, None, "seed41", ("test", "seed41"), "--part test --split seed41"),
    ],
)
def test_part_and_split(
    part: str | None,
    split: str | None,
    split_rule: str | None,
    meant: tuple[str, str | None],
    note: str,
    capsys: pytest.CaptureFixture[str],
):
    assert assemble.part_and_split(part, split, split_rule) == meant
    assert capsys.readouterr().err == (f"note: this is now written {note}\n" if note else "")


def test_an_old_spelling_with_two_meanings_is_refused(polyps: Path, tmp_path: Path):
    data = Path(shutil.copytree(polyps, tmp_path / "data"))
    spec = EvaluateSpec(model="any", data=str(data), part="test")
    assemble.refuse_two_meanings(spec)
    default = Manifest.load(data).default_split
    shutil.copy(data / "splits" / f"{default}.json", data / "splits" / "test.json")
    content = json.loads((data / "manifest.json").read_text())
    content.setdefault("added_splits", {})["test"] = content["splits"][default]
    (data / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="has a split of this name, and it was also the option for the part"):
        assemble.refuse_two_meanings(spec)
