"""Two channels of MR with regions, from an nnU-Net folder to masks of raw files and of an exported model."""

from __future__ import annotations

import csv
import json
from importlib.util import find_spec
from pathlib import Path

import nibabel
import numpy as np
import pytest

from rwkv_jobs import predict
from rwkvctl.cli.assemble import predict_spec
from rwkvctl.data.convert import synth
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.feed.cases import read_case
from rwkvctl.data.images import grid
from rwkvctl.data.store.case_reader import reader_for
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.models import bundle, export_whole
from rwkvctl.models.ensemble import Member, Segmenter

from .conftest import COMMON, TINY


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "source"
    return synth.write("nnunet:channels", folder, n=6, size=32) / "Dataset045_Tumours"


@pytest.fixture(scope="module")
def made(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return prepare("nnunet", [tree], tmp_path_factory.mktemp("shards") / "tumours", seeds=[1], ratio="4:1:1")


def predicted(model: str, inputs: list[Path], out: Path) -> dict:
    spec = predict_spec([model, *map(str, inputs)], str(out), None, [], {})
    predict.check(spec, out.parent / "run")
    return predict.run(spec, out.parent / "run")


@pytest.mark.slow
def test_from_two_files_a_case_to_masks(made: Manifest, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from rwkv_jobs.entry import guarded, resolve

    own = [f"data.path={made.root}", "data.dataset=tumours", "name=two", "cluster.launcher=process", *COMMON]
    settings = [*own, *TINY["finetune"], "train.epochs=1", "augment.preset=nnunet"]
    run_dir = resolve("finetune", "multiclass", settings)[1]
    assert guarded("finetune", str(run_dir), []) == 0, capsys.readouterr().err
    info = bundle.read_info(run_dir / "model")
    assert (info.channels, info.channel_names, info.model["in_channels"]) == (2, ["T1", "FLAIR"], 2)
    summary = json.loads((run_dir / "summary.json").read_text())
    assert list(summary["val"]["classes"]) == ["enhancing", "tumour core", "whole tumour"], "scored by region"
    rows = list(csv.DictReader((run_dir / "artifacts" / "val" / "cases.csv").read_text().splitlines()))
    assert {row["class"] for row in rows} == {"enhancing", "tumour core", "whole tumour"}
    assert {row["predicted_dsc"] for row in rows} == {""}

    model, info = bundle.load(run_dir / "model")
    export_whole.export(model, info, tmp_path / "two.onnx", "onnx")
    for reference, folder in ((str(run_dir / "model"), "torch"), (str(tmp_path / "two.onnx"), "onnx")):
        predicted(reference, [tree / "imagesTr"], tmp_path / folder)
    keys = made.ids(None, "test")
    reader, segmenter = reader_for(made, keys), Segmenter([Member(bundle.load(run_dir / "model")[0], info)])
    for row, key in enumerate(keys):
        case = read_case(reader, row)
        mask = segmenter.segment(case.image).mask
        for folder in ("torch", "onnx"):
            written = nibabel.load(tmp_path / folder / f"{key.removeprefix('tumours_')}.nii.gz")
            np.testing.assert_array_equal(grid.turned_again(np.asarray(written.dataobj), case.meta), mask)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("nnunetv2") is None, reason="nnU-Net is not installed")
def test_nnunet_scores_regions_as_we_do(made: Manifest, tree: Path, tmp_path: Path):
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    from rwkvctl.training.metrics import score_case

    rng = np.random.default_rng(0)
    for path in sorted((tree / "labelsTr").iterdir())[:3]:
        truth = nibabel.load(path)
        labels = np.asarray(truth.dataobj)
        noisy = np.where(rng.random(labels.shape) < 0.2, rng.integers(0, 4, labels.shape), labels % 4).astype(np.uint8)
        nibabel.Nifti1Image(noisy, truth.affine).to_filename(tmp_path / path.name)
        regions = [(1, 2, 3), (2, 3), (3,)]
        theirs = compute_metrics(str(path), str(tmp_path / path.name), SimpleITKIO(), regions, 4)["metrics"]
        ours = score_case(noisy, np.where(labels == 4, 255, labels), 4, ignore_index=255, regions=regions)
        for region, score in zip(regions, ours, strict=True):
            assert score.strict_dsc == pytest.approx(theirs[region]["Dice"], abs=1e-9)
