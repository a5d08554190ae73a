"""`rwkvctl model calibrate`: a folder with the same weights and a temperature, or one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rwkv_unet import create_model
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.convert.synth import phantom
from rwkvctl.data.feed.cases import iter_cases
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.models import bundle
from rwkvctl.training.calibration import box_of


@pytest.fixture(scope="module")
def polyps(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("data")
    return prepare("folder", [phantom.write_polyps(folder / "raw", n=12, size=40)], folder / "polyps", seeds=[41])


@pytest.fixture(scope="module")
def model(polyps: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of a network that says of every pixel, with the logit -4, that it is background."""
    network = create_model("rwkv_unet_xt", num_classes=1)
    info = bundle.BundleInfo(
        model={"name": "rwkv_unet_xt", "num_classes": 1},
        classes=polyps.classes,
        image_size=32,
        image_kind="rgb8",
        channels=3,
        dataset="polyps",
        fingerprint=polyps.fingerprint,
        extra={"data": str(polyps.root)},
    )
    folder = tmp_path_factory.mktemp("model") / "net"
    state = network.state_dict()
    *_, last = (name.removesuffix(".bias") for name in state if name.endswith(".bias"))
    state[f"{last}.weight"], state[f"{last}.bias"] = 0 * state[f"{last}.weight"], 0 * state[f"{last}.bias"] - 4
    bundle.save(folder, state, info)
    return folder


def foreground_share(manifest: Manifest) -> float:
    """Of the pixels around the foreground of the validation cases."""
    masks = [torch.from_numpy(case.mask > 0) for case in iter_cases(manifest, split=None, part="val")]
    inside = torch.cat([mask[box_of(mask)].flatten() for mask in masks if mask.any()])  # type: ignore[index]
    return float(inside.float().mean())


def test_a_model_gets_the_temperature_of_its_validation_cases(rwkvctl, model: Path, tmp_path: Path):
    done = rwkvctl(f"model calibrate {model} --out {tmp_path}/calibrated --json")
    assert done.code == 0, done.err
    before, after = bundle.read_info(model), bundle.read_info(tmp_path / "calibrated")
    assert before.calibration is None
    assert after.calibration is not None
    share = foreground_share(Manifest.load(before.extra["data"]))
    assert after.temperature == pytest.approx(4 / np.log((1 - share) / share), rel=0.02)
    assert json.loads(done.out)["temperature"] == after.temperature
    assert after.weights_sha256 == before.weights_sha256
    assert after.calibration.likelihood[1] < after.calibration.likelihood[0]  # type: ignore[index]
    again = rwkvctl(f"model calibrate {model} --out {tmp_path}/calibrated")
    assert (again.code, again.err) == (2, f"error: --out {tmp_path}/calibrated: exists already; give a new folder\n")
    wrong = rwkvctl(f"model calibrate {model} --out {tmp_path}/x --split nope")
    assert (wrong.code, wrong.err) == (2, "error: split 'nope': polyps has random811_s41\n")
    assert not (tmp_path / "x").exists()
