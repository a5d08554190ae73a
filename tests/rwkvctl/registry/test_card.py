"""Where a version comes from, and the card that says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from typer.testing import CliRunner

from rwkv_unet import create_model
from rwkvctl.base.errors import UserError
from rwkvctl.cli.app import app
from rwkvctl.models import bundle
from rwkvctl.registry import card as cards
from rwkvctl.registry import lineage as origins
from rwkvctl.registry.promote import promote
from rwkvctl.registry.register import register

from .conftest import synced_run
from .test_promotion import GOOD, evaluated

SPEC = {"job": "finetune", "data": {"path": "/data/acdc"}, "model": {"encoder_weights": "models:/enc@champion"}}


def folder_of(path: Path, channels: int, **extra: object) -> Path:
    info = bundle.BundleInfo(
        model={"name": "rwkv_unet_xt", "num_classes": 4},
        classes=["background", "right ventricle", "myocardium", "left ventricle"],
        image_size=32,
        image_kind="float",
        channels=channels,
        dataset="acdc",
        fingerprint="f00d" * 16,
        extra={"split": "random-41", **extra},
    )
    bundle.save(path, create_model("rwkv_unet_xt", num_classes=4, in_channels=channels).state_dict(), info)
    return path


@pytest.fixture
def trained(tracking_uri: str, tmp_path: Path) -> str:
    """`net` version 1 began with `enc` version 1, which was the champion then."""
    encoders = [folder_of(tmp_path / f"enc{channels}", channels) for channels in (1, 2)]
    for number, folder in enumerate(encoders):
        run = synced_run(tmp_path / f"pretraining{number}", tracking_uri)
        register(run, folder, "enc", {"run": f"pre{number}", "spec": {"job": "pretrain"}}, tracking_uri=tracking_uri)
    begun = {"reference": "models:/enc@champion", "sha256": bundle.read_info(encoders[0]).weights_sha256}
    model = folder_of(tmp_path / "net", 3, encoder=begun)
    run = synced_run(tmp_path / "run", tracking_uri)
    tags = {"run": "mine", "spec": SPEC, "git_commit": "1f3c", "parameters": 123456, "macs_paper": 7 * 10**9}
    register(run, model, "net", tags, metrics={"val/dsc_strict/mean": 0.9}, tracking_uri=tracking_uri)
    promote("enc", 2, "champion", tracking_uri=tracking_uri)  # since then
    return tracking_uri


def test_the_encoder_is_the_version_whose_weights_were_used(trained: str):
    found = origins.lineage("models:/net/1", trained)
    assert (found.run, found.job, found.data, found.commit) == ("mine", "finetune", "/data/acdc", "1f3c")
    assert found.encoder is not None
    assert (found.encoder.model, found.encoder.run) == ("models:/enc/1", "pre0"), "not where the alias points today"
    text = "\n".join(origins.lines(found))
    assert "data     acdc, fingerprint f00df00df00d, split random-41, /data/acdc" in text
    assert text.index("encoder") < text.index("    models:/enc/1")


def test_what_is_gone_or_foreign_is_said(trained: str):
    client = MlflowClient(trained, registry_uri=trained)
    client.delete_registered_model("enc")
    found = origins.lineage("models:/net/1", trained)
    assert found.encoder is not None
    assert "no registered model 'enc'" in found.encoder.note
    client.create_registered_model("theirs")
    client.create_model_version("theirs", source="somewhere")
    assert origins.lineage("models:/theirs/1", trained).note == "not made by rwkvctl: no more is recorded"
    for wrong in ("net", "models:/net", "models:/net/x", "models:/net/7", "models:/net@live", "models:/nte/1"):
        with pytest.raises(UserError):
            origins.lineage(wrong, trained)


def test_a_card_says_what_a_reader_has_to_know(trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    evaluated(trained, tmp_path / "net", tmp_path / "evaluation", GOOD)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", trained)
    result = CliRunner().invoke(app, ["model", "card", "models:/net/1", "--out", str(tmp_path / "card.md")])
    assert result.exit_code == 0, result.output
    text = (tmp_path / "card.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["pipeline_tag"] == "image-segmentation"
    for said in (
        "# net/1",
        "123,456 parameters, 7.000 GMACs an image",
        "## Intended use",
        "not a medical device",
        "Licence of the data: ",
        "Classes: background, right ventricle, myocardium, left ventricle.",
        "| test | dsc_strict | 0.8100 | 0.7717 to 0.8483 | 12 |",
        "| val | dsc_strict | 0.9000 |  |  |",
        "Scored on 12 test cases of one data set",
        "    models:/net/1",
        '"encoder_weights": "models:/enc@champion"',
    ):
        assert said in text, said
    version = MlflowClient(trained, registry_uri=trained).get_model_version("net", "1")
    assert version.description is not None
    assert version.description.startswith("# net/1\n")
    assert "| test | dsc_strict | 0.8100 |" in version.description
    assert len(version.description) < 5000
    told = json.loads(CliRunner().invoke(app, ["model", "card", "models:/net/1", "--json"]).output)
    assert told["origin"]["encoder"]["model"] == "models:/enc/1"
    assert told["scores"][0]["cases"] == 12


def test_a_version_that_was_never_tested_says_so(trained: str):
    text = cards.as_markdown(cards.card("models:/net/1", trained))
    assert "It was not scored on test cases; validation cases were used to choose its weights." in text
