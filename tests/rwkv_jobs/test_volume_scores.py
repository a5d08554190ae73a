"""Whole volumes scored by networks over three axes: as a plain script and `predict` say of the same."""

from __future__ import annotations

import csv
import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.inferers import SlidingWindowInferer
from torch import Tensor, nn

from rwkv_jobs import scoring
from rwkv_jobs.entry import guarded
from rwkv_jobs.evaluate import data_of
from rwkv_jobs.networks import Networks
from rwkv_jobs.volume_masks import VolumeMasks
from rwkv_jobs.worker import Worker
from rwkv_unet import create_model
from rwkvctl.base.errors import UserError
from rwkvctl.config.specs.jobs import EvaluateSpec, PredictSpec
from rwkvctl.config.specs.parts import DataSpec
from rwkvctl.data.convert import synth
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.feed.cases import iter_cases
from rwkvctl.data.feed.resample import resize_image, shape_at
from rwkvctl.data.store.case_reader import reader_for
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.models import bundle, calibrate, members
from rwkvctl.models.bundle import VolumeInput
from rwkvctl.models.certainty import Certainty, probabilities_of
from rwkvctl.models.ensemble import Member, Segmenter
from rwkvctl.models.predict import plan, predict_files, predict_one
from rwkvctl.runs import folder as run_folder
from rwkvctl.training import metrics

from .conftest import Jobs
from .test_evaluate import new, result

ME = Worker(0, 1, torch.device("cpu"))
SEEN = VolumeInput(patch=(8, 32, 32), spacing=(4.0, 2.0, 2.0))


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Volumes of 5 x 60 x 64 voxels of 4 x 1.25 x 1.5 mm, with organs."""
    folder = tmp_path_factory.mktemp("raw") / "spaced"
    synth.write("decathlon", folder)
    return folder


@pytest.fixture(scope="session")
def spaced(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return prepare("decathlon", [raw], tmp_path_factory.mktemp("shards") / "spaced", allow_partial=True)


class Watched(nn.Module):
    """An untrained network that tells whether it ran under autocast; its logits are centred, so that it sees all."""

    def __init__(self, manifest: Manifest, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.network = create_model("rwkv_unet_3d_t", num_classes=len(manifest.classes), in_channels=manifest.channels)
        self.autocast: set[bool] = set()
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.autocast.add(torch.is_autocast_enabled("cpu"))
        logits: Tensor = self.network(x)
        return 10 * (logits - logits.mean(dim=(2, 3, 4), keepdim=True))


def plainly(model: nn.Module, image: np.ndarray, spacing: Any, seen: VolumeInput = SEEN) -> Tensor:
    """Logits (classes, D, H, W) as a script has them."""
    x = torch.from_numpy(np.array(image))[None]
    shape = tuple(x.shape[1:]) if seen.spacing is None else shape_at(x.shape[1:], spacing, seen.spacing)
    inferer = SlidingWindowInferer(seen.patch, 1, seen.overlap, mode="gaussian", padding_mode="replicate")
    with torch.inference_mode():
        logits = inferer(resize_image(x, shape)[None], model)  # type: ignore[arg-type]
        assert isinstance(logits, Tensor)
        return F.interpolate(logits, x.shape[1:], mode="trilinear", align_corners=False)[0]


def score(
    model: Any, manifest: Manifest, seen: VolumeInput | None = SEEN, part: str = "test", **options: Any
) -> scoring.Scores:
    return scoring.score_cases(model, manifest, DataSpec(workers=0), part, ME, hd95=True, volumes=seen, **options)


@pytest.mark.parametrize("seen", [SEEN, VolumeInput(patch=(8, 48, 32), overlap=0.25)], ids=["spaced", "as it is"])
def test_scores_are_those_of_a_plain_script(spaced: Manifest, seen: VolumeInput) -> None:
    model = Watched(spaced)
    found = score(model, spaced, seen, probabilities=scoring.Probabilities(2.0))
    cases = list(iter_cases(spaced, split=None, part="test"))
    assert list(found.cases) == [case.key for case in cases]
    assert len(cases) > 1
    classes = set()
    for case in cases:
        logits = plainly(model, case.image, case.spacing_mm, seen)
        mask = logits.argmax(dim=0).numpy().astype(np.uint8)
        classes |= set(np.unique(mask))
        assert found.cases[case.key] == metrics.score_case(mask, case.mask, len(spaced.classes), case.spacing_mm)
        certainty = Certainty()
        certainty.see(probabilities_of(logits.movedim(1, 0), 2.0), torch.from_numpy(mask))
        assert found.sureness[case.key].predicted_dsc == pytest.approx(certainty.result().predicted_dsc, abs=1e-4)
    assert len(classes) == len(spaced.classes)
    assert found.calibration is not None
    assert found.calibration.slices == sum(len(case.mask) for case in cases)


def test_the_mean_of_probabilities_decides_and_of_folds_the_one_that_has_not_seen_a_case(spaced: Manifest) -> None:
    models, temperatures = [Watched(spaced), Watched(spaced, 1)], (1.0, 3.0)
    other = VolumeInput(patch=(8, 32, 32), spacing=(5.0, 3.0, 2.0))
    every = Networks(models, temperatures, volumes=[SEEN, other])
    cases = list(iter_cases(spaced, split=None, part="test"))
    each = {
        case.key: [
            plainly(model, case.image, case.spacing_mm, seen) for model, seen in zip(models, (SEEN, other), strict=True)
        ]
        for case in cases
    }
    found = score(every, spaced)
    for case in cases:
        mean = sum(x.div(t).softmax(dim=0) for x, t in zip(each[case.key], temperatures, strict=True))
        mask = mean.argmax(dim=0).numpy().astype(np.uint8)  # type: ignore[union-attr]
        assert found.cases[case.key] == metrics.score_case(mask, case.mask, len(spaced.classes), case.spacing_mm)
    member_of = {case.key: number % 2 for number, case in enumerate(cases)}
    found = score(Networks(models, temperatures, member_of, [SEEN, other]), spaced)
    for case in cases:
        mask = each[case.key][member_of[case.key]].argmax(dim=0).numpy().astype(np.uint8)
        assert found.cases[case.key] == metrics.score_case(mask, case.mask, len(spaced.classes), case.spacing_mm)


def test_slices_of_a_part_are_scored_as_their_volumes_and_every_rank_has_its_share(spaced: Manifest) -> None:
    model, ids = Watched(spaced), spaced.ids(None, "train")
    cases = list(dict.fromkeys(key.rpartition("_z")[0] or key for key in ids))
    assert len(cases) < len(ids)
    with closing(
        scoring.CaseScorer(spaced, DataSpec(workers=0), "train", ME, hd95=False, ids=ids[:6], volumes=SEEN)
    ) as scorer:
        assert list(scorer.score(model).cases) == cases[: len(scorer.ids)]
    whole = reader_for(spaced, cases[:3])
    masks = dict(VolumeMasks(Networks([model], volumes=[SEEN]), whole, ME, "fp32", len(spaced.classes)).each(None))
    for rank in range(2):
        own = reader_for(spaced, cases[:3][rank::2])
        networks = Networks([model], volumes=[SEEN])
        for row, mask in VolumeMasks(networks, own, replace(ME, rank=rank), "fp32", len(spaced.classes)).each(None):
            np.testing.assert_array_equal(mask, masks[cases.index(own.key(row))])


def test_autocast_is_that_of_the_training(spaced: Manifest) -> None:
    for precision, expected in (("fp32", {False}), ("bf16", {True})):
        model = Watched(spaced)
        score(model, spaced, precision=precision)
        assert model.autocast == expected


# Jobs ---------------------------------------------------------------------------------------------------------------


def save(folder: Path, manifest: Manifest, seed: int = 0, seen: VolumeInput = SEEN, **fields: Any) -> Path:
    """A model folder of an untrained network."""
    torch.manual_seed(seed)
    described = {"name": "rwkv_unet_3d_t", "num_classes": len(manifest.classes), "in_channels": manifest.channels}
    model = create_model(**described)  # type: ignore[arg-type]
    own = {
        "kind": "segmentation", "model": described, "classes": manifest.classes, "image_size": seen.patch[1:],
        "volumes": seen, "image_kind": "float", "channels": manifest.channels, "dataset": manifest.dataset,
        "fingerprint": manifest.fingerprint, "intensity": manifest.content.intensity,
        "orientation": manifest.content.orientation,
        "extra": {"data": manifest.location, "split": manifest.default_split},
    }  # fmt: skip
    bundle.save(folder, model.state_dict(), bundle.BundleInfo.model_validate(own | fields))
    return folder


def test_evaluate_scores_what_predict_writes(jobs: Jobs, raw: Path, spaced: Manifest, tmp_path: Path) -> None:
    run_dir = new(jobs, "eval", save(tmp_path / "model", spaced), overlays=1)
    assert guarded("evaluate", str(run_dir), []) == 0
    found = result(run_dir)
    rows = list(csv.DictReader((run_dir / "artifacts" / "test" / "cases.csv").read_text().splitlines()))
    keys = spaced.ids(None, "test")
    assert {row["case"] for row in rows} == set(keys)
    scans = {path.name.removesuffix(".nii.gz"): path for path in raw.rglob("imagesTr/*.nii.gz")}
    names = {key: next(name for name in scans if key.endswith(name)) for key in keys}
    model, info = bundle.load(tmp_path / "model")
    for key, name in names.items():
        [written] = predict_files(model, info, [scans[name]], tmp_path / "masks" / name)
        mask, truth = (np.asarray(nibabel.load(path).dataobj) for path in (written, truth_of(scans[name])))
        for row in (row for row in rows if row["case"] == key):
            class_id = spaced.classes.index(row["class"])
            both = np.logical_and(mask == class_id, truth == class_id).sum()
            total = (mask == class_id).sum() + (truth == class_id).sum()
            if row["dsc_strict"]:
                assert float(row["dsc_strict"]) == pytest.approx(2 * both / total, abs=1e-6)
    assert found["calibration"]["temperature"] == 1
    assert (
        "at 4 x 2 x 2 mm (z, y, x), in patches of 8 x 32 x 32 voxels"
        in (run_dir / "artifacts/test/evaluation.html").read_text()
    )


def truth_of(scan: Path) -> Path:
    return Path(str(scan).replace("imagesTr", "labelsTr"))


def test_ensembles_and_calibration(jobs: Jobs, spaced: Manifest, tmp_path: Path) -> None:
    folders = {f"fold{seed}": save(tmp_path / f"m{seed}", spaced, seed) for seed in (0, 1)}
    members.save(tmp_path / "both", folders, {})
    run_dir = new(jobs, "eval", tmp_path / "both", split=spaced.default_split)
    assert guarded("evaluate", str(run_dir), []) == 0
    assert result(run_dir)["mean"]["dsc_strict"] is not None
    model, info = bundle.load(tmp_path / "m0")
    found = calibrate.calibrate(model, info, spaced, spaced.default_split).calibration
    scores = score(model, spaced, part="val", probabilities=scoring.Probabilities(fit=True))
    assert found is not None
    assert scores.calibration is not None
    assert found == calibrate.calibrated(scores.calibration, spaced, spaced.default_split)


@pytest.mark.parametrize("first", ["slices", "volumes"])
def test_an_ensemble_of_slices_and_volumes_is_scored_as_it_predicts(
    first: str, jobs: Jobs, raw: Path, spaced: Manifest, tmp_path: Path
) -> None:
    own = {"name": "rwkv_unet_t", "num_classes": len(spaced.classes), "in_channels": spaced.channels}
    torch.manual_seed(1)
    network = create_model(**own)  # type: ignore[arg-type]
    over_three = save(tmp_path / "volumes", spaced)
    fields = bundle.read_info(over_three).model_dump() | {"model": own, "image_size": 48, "volumes": None}
    bundle.save(tmp_path / "slices", network.state_dict(), bundle.BundleInfo.model_validate(fields))
    names = [first, "volumes" if first == "slices" else "slices"]
    members.save(tmp_path / "both", {name: tmp_path / name for name in names}, {})
    run_dir = new(jobs, "eval", tmp_path / "both", split=spaced.default_split)
    assert guarded("evaluate", str(run_dir), []) == 0
    rows = list(csv.DictReader((run_dir / "artifacts" / "test" / "cases.csv").read_text().splitlines()))
    [scan] = [path for path in raw.rglob("imagesTr/*.nii.gz") if rows[0]["case"].endswith(path.name[:-7])]
    segmenter = Segmenter([Member(*bundle.load(tmp_path / name)) for name in names])
    [[planned], [place]] = plan([scan], segmenter.info, tmp_path / "masks")
    written = predict_one(segmenter, planned, place).mask
    mask, truth = (np.asarray(nibabel.load(path).dataobj) for path in (written, truth_of(scan)))
    seen = [row for row in rows if row["case"] == rows[0]["case"] and row["dsc_strict"]]
    assert seen
    for row in seen:
        class_id = spaced.classes.index(row["class"])
        both = np.logical_and(mask == class_id, truth == class_id).sum()
        total = (mask == class_id).sum() + (truth == class_id).sum()
        assert float(row["dsc_strict"]) == pytest.approx(2 * both / total, abs=1e-6)
    page = (run_dir / "artifacts/test/evaluation.html").read_text()
    assert "<dt>image size</dt><dd>48</dd>" in page
    assert "in patches of 8 x 32 x 32 voxels" in page


def test_data_of_images_is_refused_in_one_line(jobs: Jobs, shards: Path, tmp_path: Path, capfd: Any) -> None:
    polyps = Manifest.load(shards / "polyps")
    folder = save(tmp_path / "model", polyps, image_kind="rgb8")
    run_dir = new(jobs, "eval", folder)
    assert guarded("evaluate", str(run_dir), []) == 2
    error = capfd.readouterr().err
    assert "holds images, and model" in error
    assert "takes whole volumes; give other --data" in error


def test_a_model_of_images_that_are_not_square_is_refused(shards: Path, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", Manifest.load(shards / "polyps"), image_kind="rgb8")
    described = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(described | {"volumes": None, "image_size": [48, 32]}))
    with pytest.raises(UserError, match="takes images of 48 x 32, and only models of square"):
        data_of(EvaluateSpec(model=str(folder), data=str(shards / "polyps")), folder)


def test_volumes_without_a_spacing_are_refused_in_one_line(
    jobs: Jobs, shards: Path, tmp_path: Path, capfd: Any
) -> None:
    hearts = Manifest.load(shards / "hearts")
    run_dir = new(jobs, "eval", save(tmp_path / "model", hearts))
    assert guarded("evaluate", str(run_dir), []) == 2
    error = capfd.readouterr().err
    assert "has no spacing, and the model takes volumes at 4 x 2 x 2 mm (z, y, x); prepare the data from files" in error
    native = save(tmp_path / "native", hearts, seen=VolumeInput(patch=(8, 32, 32)))
    run_dir = new(jobs, "native", native)
    assert guarded("evaluate", str(run_dir), []) == 0


def test_predict_is_a_job_of_volumes_too(jobs: Jobs, raw: Path, spaced: Manifest, tmp_path: Path, capfd: Any) -> None:
    model, scan = save(tmp_path / "model", spaced), next(raw.rglob("imagesTr/*.nii.gz"))
    np.save(tmp_path / "v.npy", np.zeros((5, 20, 30), np.float32))

    def predicted(name: str, inputs: Path, **fields: Any) -> int:
        spec = PredictSpec.model_validate(
            {"name": name, "model": str(model), "inputs": [str(inputs)], "out": str(tmp_path / name)}
            | {"cluster": {"launcher": "process"}, "storage": str(jobs.runs)}
            | {"tracking": {"uri": f"sqlite:///{jobs.home / 'mlflow.db'}"}}
            | fields
        )
        return guarded("predict", str(run_folder.create(spec, str(jobs.runs))), [])

    assert predicted("masks", scan, probabilities=True, tta="flips") == 0
    mask = nibabel.load(tmp_path / "masks" / scan.name)
    np.testing.assert_allclose(mask.affine, nibabel.load(scan).affine)
    with np.load(next((tmp_path / "masks").glob("*.npz"))) as kept:
        [likely] = kept.values()
    assert likely.shape == (len(spaced.classes), *mask.shape)
    np.testing.assert_allclose(likely.astype(np.float32).sum(axis=0), 1, atol=5e-3)
    capfd.readouterr()
    for inputs, fields, said in (
        (scan, {"tile": True}, "--tile: the model sees volumes, always through a window; leave it out"),
        (tmp_path / "v.npy", {}, "v.npy: has no spacing, and the model takes volumes at 4 x 2 x 2 mm (z, y, x): give"),
    ):
        assert predicted("other", inputs, **fields) == 2
        assert said in capfd.readouterr().err
