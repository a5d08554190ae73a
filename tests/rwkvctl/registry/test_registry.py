"""Versions are made once, found again, compared fairly and only then promoted. MLflow here is real, on SQLite."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import cv2
import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from rwkvctl.base.errors import UserError
from rwkvctl.models import bundle, inference
from rwkvctl.registry import measured
from rwkvctl.registry.download import downloaded
from rwkvctl.registry.measured import Measured
from rwkvctl.registry.promote import promote
from rwkvctl.registry.register import record_scores, register
from rwkvctl.registry.versions import Model, all_versions, list_models, show
from rwkvctl.runs.journal import Journal

from .conftest import DSC, OWN, model_folder, scored, synced_run


def test_version_says_where_it_comes_from(tracking_uri: str, tmp_path: Path) -> None:
    run = synced_run(tmp_path / "run", tracking_uri)
    folder = model_folder(tmp_path / "model")
    tags = {"git": "1f3c", "spec": {"lr": 1e-3}, "macs": 123}
    number = register(run, folder, "rwkv_unet_phantom", tags, metrics={"dsc_strict": 0.75}, tracking_uri=tracking_uri)
    [version] = show("rwkv_unet_phantom", tracking_uri)
    assert (number, version.version) == (1, 1)
    assert version.run_id == json.loads((run / "mlflow.json").read_text())["run_id"]
    assert version.metrics == {"dsc_strict": 0.75}
    assert version.tags["git"] == "1f3c"
    assert json.loads(version.tags["spec"]) == {"lr": 1e-3}
    assert version.tags["macs"] == "123"
    assert version.tags["fingerprint"] == "f00d" * 16
    assert json.loads(version.tags["model"])["name"] == "rwkv_unet_t"
    assert list_models(tracking_uri) == [Model("rwkv_unet_phantom", 1, 1, {})]


def test_mlflow_has_the_model_with_its_scores_by_data_set(tracking_uri: str, tmp_path: Path) -> None:
    """The version's page shows all of its tags; the model is linked with its run, its data and its evaluation."""
    run = synced_run(tmp_path / "run", tracking_uri, **{"best_val/dsc_strict/mean": 0.75, "train/loss": 0.1})
    folder = model_folder(tmp_path / "model")
    tags = {"git_commit": "1f3c", "spec": {"lr": 1e-3}, "macs_paper": 123, "parameters": 7, "run": "mine"}
    values = {f"val/dsc_strict/{name}": 0.5 for name in ("mean", "polyp", *map(str, range(30)))}
    assert register(run, folder, "net", tags, metrics=values, tracking_uri=tracking_uri) == 1
    evaluation = synced_run(tmp_path / "evaluation", tracking_uri, **{DSC: 0.8})
    [run_id, evaluation_id] = [json.loads((each / "mlflow.json").read_text())["run_id"] for each in (run, evaluation)]
    for _ in range(2):  # cut short and done again
        record_scores(
            folder,
            {DSC: 0.8},
            Measured(**OWN),
            run_id=evaluation_id,
            tracking_uri=tracking_uri,  # type: ignore[arg-type]
        )
    client = MlflowClient(tracking_uri, registry_uri=tracking_uri)
    version = client.get_model_version("net", "1")
    assert len(version.tags) <= 10
    assert set(version.tags) >= {"scores.val", "scores.test", "weights_sha256"}
    [model] = client.search_logged_models([client.get_run(run_id).info.experiment_id])
    assert (model.source_run_id, str(model.status), model.name) == (run_id, "READY", "rwkv_unet_t")
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": "net", "version": "1"}]
    assert model.params["model.num_classes"] == "2"
    place = ("phantom/random-41", "f00d" * 3)
    assert {(m.key, m.value, m.run_id, m.dataset_name, m.dataset_digest) for m in model.metrics} == {
        ("best_val/dsc_strict/mean", 0.75, run_id, f"{place[0]}/val", place[1]),
        (DSC, 0.8, evaluation_id, f"{place[0]}/test", place[1]),
    }
    assert [each.model_id for each in client.get_run(run_id).outputs.model_outputs] == [model.model_id]
    assert [each.model_id for each in client.get_run(evaluation_id).inputs.model_inputs] == [model.model_id]
    assert len(client.get_metric_history(evaluation_id, DSC)) == 1


def test_resumed_job_registers_nothing_new(tracking_uri: str, tmp_path: Path) -> None:
    run = synced_run(tmp_path / "run", tracking_uri)
    folder = model_folder(tmp_path / "model")
    run_id = json.loads((run / "mlflow.json").read_text())["run_id"]
    numbers = [register(which, folder, "net", tracking_uri=tracking_uri) for which in (run, run_id, run)]
    assert numbers == [1, 1, 1]
    assert register(run, model_folder(folder, 1), "net", tracking_uri=tracking_uri) == 2


def test_interrupted_registration_is_finished_by_the_next(
    tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, folder = synced_run(tmp_path / "run", tracking_uri), model_folder(tmp_path / "model")
    original = MlflowClient.create_model_version

    def made_but_not_answered(*args, **kwargs):
        original(*args, **kwargs)
        raise ConnectionError("cut")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_model_version", made_but_not_answered)
        with pytest.raises(ConnectionError):
            register(run, folder, "net", tracking_uri=tracking_uri)
    assert register(run, folder, "net", tracking_uri=tracking_uri) == 1
    assert len(show("net", tracking_uri)) == 1


def test_what_cannot_be_registered(tracking_uri: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    unsynced = tmp_path / "run"
    Journal(unsynced / "journal.jsonl").close()
    with pytest.raises(UserError, match="rwkvctl sync"):
        register(unsynced, folder, "net", tracking_uri=tracking_uri)
    with pytest.raises(UserError, match="neither a run directory nor the id"):
        register("0" * 32, folder, "net", tracking_uri=tracking_uri)
    with pytest.raises(UserError, match="model name"):
        register(unsynced, folder, "a/b", tracking_uri=tracking_uri)
    with (folder / "weights.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match="SHA-256"):
        register(unsynced, folder, "net", tracking_uri=tracking_uri)


def test_resolved_folder_is_the_one_registered(two_versions: str, registry_of_two: Path, tmp_path: Path) -> None:
    promote("net", 1, "champion", tracking_uri=two_versions)
    for uri, number in (("models:/net@champion", 1), ("models:/net/2", 2), ("models:/net/latest", 2)):
        folder = downloaded(uri, two_versions)
        assert folder.is_relative_to(tmp_path / "home" / "cache")
        assert bundle.load(folder)[1] == bundle.read_info(registry_of_two / f"model{number}")
    promote("net", 2, "champion", tracking_uri=two_versions)
    assert downloaded("models:/net@champion", two_versions) == downloaded("models:/net/2", two_versions)
    kept = tmp_path / "home" / "cache" / "models"
    assert len(list(kept.iterdir())) == 2


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/nte@champion", r"no registered model 'nte'; did you mean net\?"),
        ("models:/other/1", r"no registered model 'other'; choose from net"),
        ("models:/net@champoin", r"no alias 'champoin'; did you mean champion\?"),
        ("models:/net/7", r"no version 7; it has 1, 2"),
        ("models:/net", r"write models:/NAME@ALIAS"),
        ("runs:/abc/model", r"write models:/NAME@ALIAS"),
    ],
)
def test_uri_that_does_not_exist(two_versions: str, uri: str, message: str) -> None:
    promote("net", 1, "champion", tracking_uri=two_versions)
    with pytest.raises(UserError, match=message):
        downloaded(uri, two_versions)


def test_empty_registry(tracking_uri: str) -> None:
    assert list_models(tracking_uri) == []
    with pytest.raises(UserError, match="there is none yet"):
        show("net", tracking_uri)


def test_gates_that_pass_are_told_and_the_alias_moves(two_versions: str) -> None:
    gates = ["dsc_strict>=0.65", "test/dsc_strict/mean < 1", "dsc_strict>champion"]
    assert promote("net", 1, "champion", gates=gates, tracking_uri=two_versions) == [
        "dsc_strict = 0.7 >= 0.65",
        "test/dsc_strict/mean = 0.7 < 1",
        "dsc_strict = 0.7: no champion to compare with yet",
    ]
    assert promote("net", 2, "champion", gates=["dsc_strict>champion"], tracking_uri=two_versions) == [
        "dsc_strict = 0.8 > 0.7 of champion (version 1)"
    ]
    newest, oldest = show("net", two_versions)
    assert (newest.version, newest.aliases, oldest.aliases) == (2, ["champion"], [])
    assert list_models(two_versions)[0].aliases == {"champion": 2}


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ("dsc_strict>=0.75", r"version 1 is not promoted: dsc_strict = 0.7 is not >= 0.75"),
        ("dsc_strict>champion", r"dsc_strict = 0.7 is not > 0.8 of champion \(version 2\)"),
        ("dsc_strict>=nan", r"dsc_strict = 0.7 is not >= nan"),
        ("dsc_strict>champoin", r"no alias 'champoin'; did you mean champion\?"),
        ("dsc_strit>=0.5", r"has no metric 'dsc_strit'"),
        ("dsc_strict", r"write METRIC>=NUMBER"),
        ("dsc_strict=0.5", r"write METRIC>=NUMBER"),
    ],
)
def test_gate_that_does_not_pass_moves_nothing(two_versions: str, gate: str, message: str) -> None:
    promote("net", 2, "champion", tracking_uri=two_versions)
    with pytest.raises(UserError, match=message):
        promote("net", 1, "champion", gates=["dsc_strict>=0.1", gate], tracking_uri=two_versions)
    assert list_models(two_versions)[0].aliases == {"champion": 2}


def test_metrics_of_other_data_are_not_compared(two_versions: str, tmp_path: Path) -> None:
    promote("net", 1, "champion", tracking_uri=two_versions)
    run = synced_run(tmp_path / "run3", two_versions, **{"test/dsc_strict/mean": 0.99})
    folder = model_folder(tmp_path / "model3", 3, fingerprint="beef" * 16)
    assert register(run, folder, "net", tracking_uri=two_versions) == 3
    with pytest.raises(UserError, match="were trained on different data"):
        promote("net", 3, "champion", gates=["dsc_strict>champion"], tracking_uri=two_versions)


@pytest.mark.parametrize("where", [{"fingerprint": "beef" * 16, "dataset": "easy"}, {"split": "random-42"}])
def test_scores_of_other_data_or_another_split_open_no_gate(
    two_versions: str, registry_of_two: Path, where: dict[str, str]
) -> None:
    model = registry_of_two / "model1"
    scored(two_versions, model, 0.61)
    scored(two_versions, model, 0.97, **where)
    version = show("net", two_versions)[1]
    assert version.metrics == {DSC: 0.61}
    found = Measured(**(OWN | where))  # type: ignore[arg-type]
    place = f"{found.dataset}-{found.fingerprint[:8]}/{found.split}"
    client = MlflowClient(two_versions, registry_uri=two_versions)
    [(elsewhere, other)] = measured.of_other_data(client.get_model_version("net", "1").tags)
    assert (elsewhere, other.values) == (place, {DSC: 0.97})
    assert (other.measured.cases, other.measured.split) == (12, where.get("split", "random-41"))
    with pytest.raises(UserError, match=r"dsc_strict = 0\.61 is not >= 0\.9"):
        promote("net", 1, "champion", gates=["dsc_strict>=0.9"], tracking_uri=two_versions)
    with pytest.raises(UserError, match="has no metric"):
        promote("net", 1, "champion", gates=[f"elsewhere.{place}/{DSC}>=0.9"], tracking_uri=two_versions)
    assert promote("net", 1, "champion", gates=["dsc_strict>=0.6"], tracking_uri=two_versions)


def test_a_model_that_was_scored_elsewhere_only_is_told_so(tracking_uri: str, tmp_path: Path) -> None:
    run = synced_run(tmp_path / "run", tracking_uri)
    register(run, model_folder(tmp_path / "model"), "net", tracking_uri=tracking_uri)
    scored(tracking_uri, tmp_path / "model", 0.97, fingerprint="beef" * 16)
    with pytest.raises(UserError, match=r"measured on other data only \(phantom-beefbeef/random-41\)") as caught:
        promote("net", 1, "champion", gates=["dsc_strict>=0.9"], tracking_uri=tracking_uri)
    assert str(caught.value).endswith("run: rwkvctl evaluate models:/net/1")


@pytest.mark.parametrize(
    ("trained_on", "said"), [(3, "3 of its 12 cases were trained on"), (None, "an unknown number of its 12 cases")]
)
def test_cases_that_were_trained_on_open_no_gate(
    two_versions: str, registry_of_two: Path, trained_on: int | None, said: str
) -> None:
    scored(two_versions, registry_of_two / "model1", 0.97, trained_on=trained_on)
    with pytest.raises(UserError, match=f"is not a valid test score: {said}"):
        promote("net", 1, "champion", gates=["dsc_strict>=0.1"], tracking_uri=two_versions)


@pytest.mark.parametrize("edited", ["0.99", json.dumps({"values": {DSC: 0.99}}), '{"values": {"x": "good"}}'])
def test_scores_that_were_edited_to_what_cannot_be_read_open_no_gate(
    two_versions: str, registry_of_two: Path, edited: str
) -> None:
    client = MlflowClient(two_versions, registry_uri=two_versions)
    client.set_model_version_tag("net", "1", "scores.test", edited)  # by hand
    newest, oldest = show("net", two_versions)
    assert (newest.notes, oldest.metrics) == ([], {})
    assert oldest.notes == [f"tag scores.test is {edited[:40]!r}, no scores: ignored; rwkvctl evaluate writes it again"]
    with pytest.raises(UserError, match=r"net version 1: tag scores\.test is .*, no scores: ignored; rwkvctl eval"):
        promote("net", 1, "champion", gates=["dsc_strict>=0.1"], tracking_uri=two_versions)
    scored(two_versions, registry_of_two / "model1", 0.7)
    assert promote("net", 1, "champion", gates=["dsc_strict>=0.1"], tracking_uri=two_versions)


def test_versions_that_were_scored_on_other_cases_are_not_compared(two_versions: str, registry_of_two: Path) -> None:
    scored(two_versions, registry_of_two / "model1", 0.7)
    scored(two_versions, registry_of_two / "model2", 0.8, cases=11)
    promote("net", 1, "champion", tracking_uri=two_versions)
    with pytest.raises(UserError, match="on split random-41, 11 cases for version 2 and on split random-41, 12 cases"):
        promote("net", 2, "champion", gates=["dsc_strict>champion"], tracking_uri=two_versions)


FOREIGN = ["bob's model", 'the "best"', "both ' and \"", "back`tick", "semi; colon", "50% -- off", "naïve net"]


def test_other_programs_models_keep_ours_from_nothing(two_versions: str, registry_of_two: Path) -> None:
    client = MlflowClient(two_versions, registry_uri=two_versions)
    for name in FOREIGN:
        client.create_registered_model(name)
        client.create_model_version(name, source=str(registry_of_two), tags={"metric.auc": "high"})
    assert {model.name: model.versions for model in list_models(two_versions)} == dict.fromkeys(FOREIGN, 1) | {"net": 2}
    for name in FOREIGN:
        [version] = show(name, two_versions)
        assert "not made by rwkvctl" in version.notes[-1]
        promote(name, 1, "champion", tracking_uri=two_versions)
        with pytest.raises(UserError, match=r"files at .*, made by another program; rwkvctl runs only models that"):
            downloaded(f"models:/{name}@champion", two_versions)
    assert [version.name for version in all_versions(two_versions)] == []  # none has the spec of a training


def test_a_version_that_another_client_made_of_our_model_runs(two_versions: str, registry_of_two: Path) -> None:
    client = MlflowClient(two_versions, registry_uri=two_versions)
    ours = client.get_model_version("net", "2")
    client.create_registered_model("copy")
    client.create_model_version("copy", source=ours.source, run_id=ours.run_id)
    folder = downloaded("models:/copy/1", two_versions)
    assert bundle.load(folder)[1] == bundle.read_info(registry_of_two / "model2")


def test_another_programs_mlflow_model_says_what_it_is(two_versions: str, tmp_path: Path) -> None:
    made = mlflow.models.Model(flavors={"sklearn": {"pickled_model": "model.pkl"}, "python_function": {"env": "x"}})
    (tmp_path / "forest").mkdir()
    made.save(str(tmp_path / "forest" / "MLmodel"))
    client = MlflowClient(two_versions, registry_uri=two_versions)
    client.create_registered_model("forest")
    client.create_model_version("forest", source=(tmp_path / "forest").as_uri())
    with pytest.raises(
        UserError, match="models:/forest/1: is an MLflow model of kind sklearn, made by another program"
    ):
        downloaded("models:/forest/1", two_versions)


def test_a_version_outlives_its_run_but_not_its_logged_model(tracking_uri: str, tmp_path: Path) -> None:
    run = synced_run(tmp_path / "run", tracking_uri, **{DSC: 0.7})
    register(run, model_folder(tmp_path / "model"), "net", tracking_uri=tracking_uri)
    client = MlflowClient(tracking_uri, registry_uri=tracking_uri)
    version = client.get_model_version("net", "1")
    run_id = version.run_id
    artifacts = Path(client.get_run(run_id).info.artifact_uri.removeprefix("file://"))
    client.delete_run(run_id)
    client._tracking_client.store._hard_delete_run(run_id)  # as `mlflow gc` does, with the files
    shutil.rmtree(artifacts, ignore_errors=True)
    [shown] = show("net", tracking_uri)
    assert shown.run_id == run_id
    assert bundle.load(downloaded("models:/net/1", tracking_uri))[1].dataset == "phantom"
    with pytest.raises(UserError, match="net version 1 has no metric 'dsc_strict'"):
        promote("net", 1, "champion", gates=["dsc_strict>=0.1"], tracking_uri=tracking_uri)
    shutil.rmtree(version.source.removeprefix("file://"))
    shutil.rmtree(tmp_path / "home" / "cache")
    with pytest.raises(
        UserError, match=rf"models:/net/1: cannot download the files of this version \(.*run {run_id}"
    ) as it:
        downloaded("models:/net/1", tracking_uri)
    assert len(str(it.value)) < 300


def test_unknown_version_is_not_promoted(two_versions: str) -> None:
    with pytest.raises(UserError, match="no version 9; it has 1, 2"):
        promote("net", 9, "champion", tracking_uri=two_versions)


def registered(tmp_path: Path, uri: str, kind: str) -> str:
    """The MLflow model of a fresh version, as a local path."""
    run = synced_run(tmp_path / "run", uri)
    register(run, model_folder(tmp_path / "model", kind=kind), "net", tracking_uri=uri)
    return MlflowClient(uri, registry_uri=uri).get_model_version("net", "1").source


def as_text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def test_mlflow_itself_can_run_a_version(tracking_uri: str, tmp_path: Path) -> None:
    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    model = mlflow.pyfunc.load_model(registered(tmp_path, tracking_uri, "rgb8"))
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    png = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
    [mask] = model.predict([as_text(png)])
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(mask), np.uint8), cv2.IMREAD_UNCHANGED)
    network, _ = bundle.load(tmp_path / "model")
    assert np.array_equal(decoded, inference.segment_image(network, image, image_size=32, image_kind="rgb8"))
    wrongs = {"not base64!": "not the base64 of a file", as_text(b"x" * 99): "not an image", "": "an empty file"}
    for wrong, said in wrongs.items():
        with pytest.raises(MlflowException, match=f"^[^\n]*input 0: [^\n]*{said}[^\n]*$"):
            model.predict([wrong])
    assert (mlflow.get_tracking_uri(), mlflow.get_registry_uri()) == before


def test_mlflow_model_of_float_slices_takes_volumes(tracking_uri: str, tmp_path: Path) -> None:
    import io

    model = mlflow.pyfunc.load_model(registered(tmp_path, tracking_uri, "float"))
    volume = np.random.default_rng(0).random((3, 40, 40))
    buffer = io.BytesIO()
    np.save(buffer, volume)
    [mask] = model.predict([as_text(buffer.getvalue())])
    labels = np.load(io.BytesIO(base64.b64decode(mask)), allow_pickle=False)
    network, _ = bundle.load(tmp_path / "model")
    assert np.array_equal(labels, inference.segment_volume(network, volume.astype(np.float32), image_size=32))
    buffer = io.BytesIO()
    np.save(buffer, volume * 700 - 200)
    with pytest.raises(MlflowException, match=r"input 0: values must lie in \[0, 1\]"):
        model.predict([as_text(buffer.getvalue())])
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}]), allow_pickle=True)
    with pytest.raises(MlflowException, match="it holds Python objects, not numbers") as said:
        model.predict([as_text(buffer.getvalue())])
    assert "pickle" not in str(said.value)


def test_nothing_of_a_version_is_a_pickle(tracking_uri: str, tmp_path: Path) -> None:
    source = Path(registered(tmp_path, tracking_uri, "rgb8").removeprefix("file://"))
    files = sorted(str(path.relative_to(source)) for path in source.rglob("*") if path.is_file())
    assert "artifacts/model/weights.safetensors" in files
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".pt", ".pth"))]


@pytest.mark.parametrize("kind", ["rgb8", "float"])
def test_the_models_own_example_is_a_request_that_it_answers(tracking_uri: str, tmp_path: Path, kind: str) -> None:
    folder = Path(registered(tmp_path, tracking_uri, kind).removeprefix("file://"))
    info = mlflow.models.Model.load(str(folder)).saved_input_example_info
    request = json.loads((folder / info["serving_input_path"]).read_text())
    assert json.loads((folder / info["artifact_path"]).read_text()) == request["inputs"]
    [mask] = mlflow.pyfunc.load_model(str(folder)).predict(request["inputs"])
    content = base64.b64decode(mask)
    assert content.startswith(b"\x89PNG" if kind == "rgb8" else b"\x93NUMPY")
