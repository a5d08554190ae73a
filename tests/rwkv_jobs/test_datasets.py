"""Every data set from its synthetic download, prepared and verified, to a model trained and scored with its recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from rwkvctl.data.convert import formats, synth

from .conftest import COMMON, TINY

TREES = {  # data set: number of samples in its tree
    "acdc": 6, "arrays": 6, "bids": 6, "busi": 12, "clinicdb": 12, "colondb": 12, "decathlon": 6, "dicom": 6,
    "folder": 12, "fugc": 6, "glas": 8, "goals": 12, "imagefolder": 48, "imagenet": 48, "imagetable": 48, "isic2017": 6,
    "kvasir": 12, "nnunet": 8, "pairs": 12, "psvfm": 12, "stacked": 12,
    "stackedclasses": 48, "synapse": 6,
}  # fmt: skip
RECIPES = {
    "arrays": "multiclass", "bids": "binary", "decathlon": "multiclass", "dicom": "multiclass", "folder": "binary",
    "imagetable": "imagefolder", "nnunet": "multiclass", "pairs": "binary",
    "stacked": "binary", "stackedclasses": "imagefolder",
}  # fmt: skip
OPTIONS = {
    "pairs": {"images": "Bilder/*.tif", "masks": "Masken/*_maske.gif"},
    "arrays": {"classes": ["background", "right ventricle", "myocardium", "left ventricle"]},
}
SHORTER = {
    name: ["optimizer.warmup_epochs=0"] for name in ("imagefolder", "imagenet", "imagetable", "stackedclasses")
} | {"fugc": ["consistency.batch_size=4"]}


@pytest.mark.slow
@pytest.mark.parametrize("name", TREES)
def test_from_download_to_model(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from rwkv_jobs.entry import guarded
    from rwkvctl.data.convert.prepare import prepare
    from rwkvctl.data.store.verify import verify

    source = synth.write(name, tmp_path / "source", n=TREES[name], size=32)
    manifest = prepare(name, [source], tmp_path / name, allow_partial=True, **OPTIONS.get(name, {}))
    assert verify(manifest.root, deep=True).problems == []
    job = "pretrain" if manifest.task == "classification" else "finetune"
    own = [f"data.path={manifest.root}", f"data.dataset={name}", f"name={name}", "cluster.launcher=process"]
    settings = [*own, *COMMON, *TINY[job], "train.epochs=1", "train.epoch_steps=1", *SHORTER.get(name, [])]
    assert guarded(job, RECIPES.get(name, name), settings) == 0, capsys.readouterr().err


def test_no_data_set_is_forgotten():
    assert set(TREES) == set(synth.FORMS) == set(formats.NAMES)
