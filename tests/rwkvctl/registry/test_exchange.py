"""What is pushed predicts as before wherever it is read, and what is pulled is checked before it is used.

Read back with `RWKVUNet.from_pretrained`, timm's `local-dir:` and huggingface_hub; the hub itself is a stand-in here,
which answers the requests of a push and a pull.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from mlflow import MlflowClient
from PIL import Image
from safetensors.torch import save_file

from rwkv_unet import RWKVUNet
from rwkvctl.base.errors import JobFailedError, UserError
from rwkvctl.models import bundle
from rwkvctl.models.predict import predict_files
from rwkvctl.registry import exchange, hub_form, places
from rwkvctl.registry.references import find_model_folder

from ...store_door import Door
from .conftest import model_folder, scored

COMMIT = "c0ffee" * 6 + "c0ff"
FILES = {"README.md", "config.json", "model.json", "model.safetensors"}
Run = Callable[[list[str]], Any]


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model folder, as a training leaves one."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("net") / "model"
    info = bundle.BundleInfo(
        model={"name": "rwkv_unet_xt", "num_classes": 1, "num_skips": 2},
        classes=["background", "polyp"],
        image_size=32,
        image_kind="rgb8",
        channels=3,
        dataset="clinicdb",
        fingerprint="f00d" * 16,
        extra={
            "run": "night",
            "split": "random-41",
            "data": "/lab/geheim/clinicdb",
            "encoder": {"reference": "/lab/geheim/enc.safetensors", "sha256": "ab" * 32},
        },
    )
    bundle.save(folder, bundle.build(info).state_dict(), info)
    return folder


@pytest.fixture
def uri(tracking_uri: str) -> str:
    return tracking_uri


def pushed(net: Path, target: Path | str, uri: str, **options: Any) -> exchange.Pushed:
    return exchange.push(str(net), net, str(target), tracking_uri=uri, **options)


def logits(model: torch.nn.Module, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return model.eval()(torch.randn(2, channels, 32, 48, generator=generator))


def test_a_folder_gives_the_same_logits_wherever_it_is_read(net: Path, tmp_path: Path, uri: str) -> None:
    expected = logits(bundle.load(net)[0])
    done = pushed(net, tmp_path / "hub", uri, licence="cc-by-nc-4.0")
    assert {path.name for path in (tmp_path / "hub").iterdir()} == FILES
    assert torch.equal(logits(RWKVUNet.from_pretrained(tmp_path / "hub")), expected)
    assert torch.equal(logits(bundle.load(tmp_path / "hub")[0]), expected)
    content = (tmp_path / "hub" / "model.safetensors").read_bytes()
    assert content == (net / "weights.safetensors").read_bytes()
    assert done.weights == hashlib.sha256(content).hexdigest()
    back = exchange.pull(str(tmp_path / "hub"), out=tmp_path / "back", tracking_uri=uri)
    model, info = bundle.load(tmp_path / "back")
    assert torch.equal(logits(model), expected)
    before = bundle.read_info(net)
    assert info.model_copy(update={"extra": {}}) == before.model_copy(update={"extra": {}})
    assert (back.kind, back.model) == ("segmentation", str(tmp_path / "back"))
    assert (tmp_path / "back").stat().st_mode & 0o055 == 0o055  # others may read it


def test_predict_takes_a_pushed_folder_and_a_pulled_version(net: Path, tmp_path: Path, uri: str) -> None:
    Image.effect_noise((50, 40), 90).convert("RGB").save(tmp_path / "a.png")
    pushed(net, tmp_path / "hub", uri)
    pulled = exchange.pull(str(tmp_path / "hub"), register_as="taken", tracking_uri=uri)
    assert pulled.model == "models:/taken/1"
    masks = []
    for number, reference in enumerate((str(net), str(tmp_path / "hub"), "models:/taken/1")):
        found = find_model_folder(reference, str(tmp_path), uri)
        model, info = bundle.load(found, kind="segmentation")
        [written] = predict_files(model, info, [tmp_path / "a.png"], tmp_path / f"{number}")
        masks.append(Path(written).read_bytes())
    assert masks[0] == masks[1] == masks[2]


@pytest.mark.slow
def test_the_commands(net: Path, tmp_path: Path, uri: str, rwkvctl: Run) -> None:
    Image.effect_noise((50, 40), 90).convert("RGB").save(tmp_path / "a.png")
    found = rwkvctl(["model", "push", str(net), str(tmp_path / "hub")])
    assert found.code == 0, found.err
    assert found.out.startswith(f"{tmp_path / 'hub'}  weights ")
    assert "so the card has no scores" in found.out
    found = rwkvctl(["predict", str(tmp_path / "hub"), str(tmp_path / "a.png"), "--out", str(tmp_path / "masks")])
    assert found.code == 0, found.err
    with Image.open(tmp_path / "masks" / "a.png") as mask:
        assert mask.size == (50, 40)
    found = rwkvctl(["model", "pull", str(tmp_path / "hub"), "--register-as", "taken", "--json"])
    assert json.loads(found.out)["model"] == "models:/taken/1"


def test_a_pulled_model_is_one_version_that_says_where_it_is_from(
    net: Path, tmp_path: Path, uri: str, rwkvctl: Run
) -> None:
    pushed(net, tmp_path / "hub", uri)
    for _ in range(2):
        done = exchange.pull(str(tmp_path / "hub"), register_as="taken", tracking_uri=uri)
        assert done.model == "models:/taken/1"
    client = MlflowClient(uri)
    [run] = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert run.data.tags["rwkvctl.pulled_from"] == str(tmp_path / "hub")
    assert run.info.status == "FINISHED"
    assert f"pulled from {tmp_path / 'hub'}" in rwkvctl(["model", "lineage", "models:/taken/1"]).out
    assert f"pulled_from: {tmp_path / 'hub'}" in rwkvctl(["model", "show", "taken"]).out


def test_the_card_has_the_scores_of_the_registered_version(
    two_versions: str, registry_of_two: Path, tmp_path: Path
) -> None:
    scored(two_versions, registry_of_two / "model2", 0.83)
    for reference in ("models:/net/2", str(registry_of_two / "model2")):
        target = tmp_path / reference.replace("/", "_")
        done = exchange.push(
            reference, registry_of_two / "model2", str(target), tracking_uri=two_versions, licence="apache-2.0"
        )
        assert done.registered == "models:/net/2"
        card = ModelCard.load(target / "README.md").data.to_dict()
        assert (card["license"], card["datasets"], card["metrics"]) == ("apache-2.0", ["phantom"], ["dice"])
        assert (card["library_name"], card["pipeline_tag"]) == ("rwkvctl", "image-segmentation")
        [result] = ModelCard.load(target / "README.md").data.eval_results
        assert (result.metric_name, result.metric_value) == ("dsc_strict", 0.83)
        assert (result.dataset_type, result.dataset_split) == ("phantom", "test")


def test_a_registry_that_is_down_is_told(net: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        down = f"http://127.0.0.1:{taken.getsockname()[1]}"
    done = pushed(net, tmp_path / "hub", down)
    assert (done.registered, "connection refused, so the card has no scores" in done.note) == ("", True)
    with pytest.raises(JobFailedError, match="connection refused; nothing is registered: try again"):
        exchange.pull(str(tmp_path / "hub"), register_as="taken", tracking_uri=down)


def test_nothing_of_the_lab_is_told(net: Path, tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_geheimtokengeheimtoken")
    pushed(net, tmp_path / "hub", uri)
    for path in (tmp_path / "hub").iterdir():
        assert b"geheim" not in path.read_bytes(), path
    extra = bundle.read_info(tmp_path / "hub").extra
    assert extra == {
        "run": "night",
        "split": "random-41",
        "encoder": {"reference": "enc.safetensors", "sha256": "ab" * 32},
    }


def test_a_classifier_is_timms(classifier_folder: Callable[[str], Path], tmp_path: Path, uri: str) -> None:
    made = classifier_folder("rwkv_unet_enc_xt")
    pushed(made, tmp_path / "hub", uri)
    expected = logits(bundle.load(made)[0])
    again = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True)
    assert torch.equal(logits(again), expected)
    assert ModelCard.load(tmp_path / "hub" / "README.md").data.library_name == "timm"
    pulled = exchange.pull(str(tmp_path / "hub"), out=tmp_path / "back", tracking_uri=uri)
    assert pulled.kind == "classifier"
    assert torch.equal(logits(bundle.load(tmp_path / "back")[0]), expected)


def test_a_network_of_another_library_goes_and_comes(tmp_path: Path, uri: str) -> None:
    info = bundle.BundleInfo(
        model={"name": "unet", "num_classes": 1, "dims": [4, 8, 16, 32, 64]},
        classes=["background", "a"],
        image_size=32,
        image_kind="float",
        channels=1,
    )
    info = info.model_copy(update={"model": info.model | {"in_channels": 1}})
    bundle.save(tmp_path / "unet", bundle.build(info).state_dict(), info)
    pushed(tmp_path / "unet", tmp_path / "hub", uri)
    exchange.pull(str(tmp_path / "hub"), out=tmp_path / "back", tracking_uri=uri)
    assert torch.equal(logits(bundle.load(tmp_path / "back")[0], 1), logits(bundle.load(tmp_path / "unet")[0], 1))


# What is refused -----------------------------------------------------------------------------------------------------


def no_info(folder: Path) -> None:
    (folder / "model.json").unlink()


def pickle_only(folder: Path) -> None:
    no_info(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.pt")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def other_weights(folder: Path) -> None:
    save_file({"x": torch.zeros(3)}, folder / "model.safetensors")


def other_config(folder: Path) -> None:
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"num_skips": 3}))


def broken_json(folder: Path) -> None:
    (folder / "model.json").write_text('{"schema": "rwkv')


def large_json(folder: Path) -> None:
    (folder / "model.json").write_text(" " * (17 << 20))


def transformer(folder: Path) -> None:
    no_info(folder)
    (folder / "config.json").write_text('{"model_type": "bert"}')


def changed(folder: Path, **fields: Any) -> None:
    info = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(info | fields))


def from_elsewhere(folder: Path) -> None:
    changed(folder, library="timm", kind="classifier", model={"name": "hf-hub:evil/model", "num_classes": 1})


def from_a_file(folder: Path) -> None:
    changed(folder, library="timm", kind="classifier", model={"name": "resnet18", "checkpoint_path": "x.pth"})


def encoder_from_elsewhere(folder: Path) -> None:
    changed(folder, model={"name": "rwkv_unet_xt", "num_classes": 1, "encoder": "local-dir:/etc"})


def other_kind(folder: Path) -> None:
    changed(folder, kind="detector")


def other_network(folder: Path) -> None:
    changed(folder, model={"name": "rwkv_unet_t", "num_classes": 1})


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (no_info, "without model.json (classes, image size, intensity), so made by another program"),
        (pickle_only, "pytorch_model.bin is a pickle, which can run any code"),
        (pickled_weights, "model.pt is a pickle, which can run any code"),
        (no_weights, "model.safetensors is missing: the model is incomplete"),
        (other_weights, "is not the"),
        (other_config, "config.json and model.json describe different networks"),
        (broken_json, "model.json: JSON: "),
        (large_json, "model.json has more than 16 MB"),
        (transformer, "is a model of kind bert, without model.json"),
        (from_elsewhere, "model.json has model.name 'hf-hub:evil/model', which would load something else"),
        (from_a_file, "model.json has model.checkpoint_path, which would load something else"),
        (encoder_from_elsewhere, "model.json has model.encoder 'local-dir:/etc', which would load something else"),
        (other_kind, "model.json: kind: "),
        (other_network, "does not fit the model of model.json"),
    ],
)
def test_what_is_pulled_is_checked_first(
    net: Path, tmp_path: Path, uri: str, rwkvctl: Run, spoil: Callable[[Path], None], said: str
) -> None:
    pushed(net, tmp_path / "hub", uri)
    spoil(tmp_path / "hub")
    found = rwkvctl(["model", "pull", str(tmp_path / "hub"), "--out", str(tmp_path / "back")])
    assert (found.code, found.err.count("\n")) == (2, 1), found.err
    assert said in found.err
    assert str(tmp_path / "hub") in found.err
    assert len(found.err) < 400 + len(str(tmp_path))
    assert not (tmp_path / "back").exists()
    assert rwkvctl(["model", "pull", str(tmp_path / "hub"), "--register-as", "taken"]).code == 2
    assert not MlflowClient(uri).search_registered_models()


def test_nothing_but_a_model_is_replaced(net: Path, tmp_path: Path, uri: str, rwkvctl: Run) -> None:
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "main.tex").write_text("")
    for line, said in (
        (["push", str(net), str(thesis)], f"{thesis}: is not empty and no model"),
        (["push", str(net), str(thesis), "--overwrite"], f"{thesis}: is not empty and no model"),
        (["push", str(net), "ftp://host/x"], "give a folder, s3://BUCKET/PREFIX or hf://OWNER/NAME"),
        (["push", str(net), "hf://one-part"], "write hf://OWNER/NAME"),
        (["push", str(net), "hf://owner/../x"], "write hf://OWNER/NAME"),
        (["push", str(net), "s3://bucket"], "write s3://BUCKET/PREFIX"),
        (["push", str(net), "s3://me:geheim@bucket/x"], "must not contain a password"),
        (["push", str(net), str(tmp_path / "x"), "--license", "My Own"], "write it as the hub does"),
        (["pull", str(tmp_path / "nowhere"), "--out", str(tmp_path / "x")], "no such folder"),
        (["pull", str(thesis), "--out", str(tmp_path / "x")], "no model here (model.json is missing)"),
        (["pull", str(thesis), "--out", "s3://bucket/x"], "--out s3://bucket/x: give a folder of this machine"),
        (["pull", str(thesis)], "give either --register-as NAME or --out FOLDER"),
        (["pull", str(thesis), "--register-as", "a/b"], "model name 'a/b'"),
    ):
        found = rwkvctl(["model", *line])
        assert (found.code, said in found.err, found.err.count("\n")) == (2, True, 1), (line, found.err)
        assert "geheim" not in found.err
    assert not (tmp_path / "x").exists()
    pushed(net, tmp_path / "hub", uri)
    with pytest.raises(UserError, match="has a model already; give another folder, or --overwrite"):
        pushed(net, tmp_path / "hub", uri)
    (tmp_path / "hub" / "model.safetensors").write_bytes(b"damaged")
    pushed(net, tmp_path / "hub", uri, overwrite=True)
    bundle.load(tmp_path / "hub")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_file_of_weights_is_not_a_model(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"net\.pth is a pickle, which can run any code"):
        exchange.pull(str(tmp_path / "net.pth"), out=tmp_path / "x", tracking_uri="")


def test_another_kind_does_not_become_a_version(
    net: Path, classifier_folder: Callable[[str], Path], tmp_path: Path, uri: str
) -> None:
    pushed(net, tmp_path / "hub", uri)
    exchange.pull(str(tmp_path / "hub"), register_as="taken", tracking_uri=uri)
    with pytest.raises(UserError, match="--register-as taken: its versions are segmentation models"):
        exchange.pull(str(classifier_folder("rwkv_unet_enc_xt")), register_as="taken", tracking_uri=uri)


def test_a_damaged_model_is_not_pushed(tmp_path: Path, uri: str) -> None:
    folder = model_folder(tmp_path / "m")
    (folder / "weights.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="is damaged or was exchanged"):
        pushed(folder, tmp_path / "hub", uri)
    assert not (tmp_path / "hub").exists()


# An object store -----------------------------------------------------------------------------------------------------


def test_an_object_store(net: Path, tmp_path: Path, uri: str, door: Door) -> None:
    door.answers.clear()
    target = f"s3://bucket/models-{tmp_path.name}/net"
    door.seen.clear()
    assert pushed(net, target, uri).address == target
    written = [line.rpartition("/")[2] for line in door.seen if line.startswith("PUT ")]
    assert [name.partition("?")[0] for name in written] == list(hub_form.FILES)  # model.json last
    exchange.pull(target, out=tmp_path / "back", tracking_uri=uri)
    assert torch.equal(logits(bundle.load(tmp_path / "back")[0]), logits(bundle.load(net)[0]))
    with pytest.raises(UserError, match="has a model already"):
        pushed(net, target, uri)
    pushed(net, target, uri, overwrite=True)
    with pytest.raises(UserError, match=r"no model here \(model.json is missing\)"):
        exchange.pull(f"{target}/deeper", out=tmp_path / "x", tracking_uri=uri)


# The hub -------------------------------------------------------------------------------------------------------------


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as a commit and its download need; `files` is what its repository has."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]
    seen: list[tuple[str, str, Any]]
    status = 200

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        self.seen.append((path, self.headers.get("Authorization", ""), body))
        if self.status != 200:
            self.answer({"error": "no"}, self.status)
        elif path == "/api/repos/create":
            self.answer({"url": f"http://{self.headers['Host']}/lab/net"})
        elif path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            self.answer({"files": modes})
        elif path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(
                {
                    "success": True,
                    "commitOid": COMMIT,
                    "commitUrl": f"http://{self.headers['Host']}/lab/net/commit/{COMMIT}",
                    "hookOutput": "",
                }
            )
        else:
            self.answer({"errors": [], "warnings": []})

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.seen.append((path, self.headers.get("Authorization", ""), b""))
        if self.status != 200:
            self.answer({"error": "no"}, self.status)
        elif path.startswith("/api/models/"):
            siblings = [{"rfilename": name, "size": len(content)} for name, content in self.files.items()]
            self.answer({"id": "lab/net", "sha": COMMIT, "siblings": siblings, "tags": [], "private": True})
        else:
            name = path.partition("/resolve/")[2].partition("/")[2]
            content = self.files[name]
            digest = hashlib.sha256(content).hexdigest()
            more = {"X-Repo-Commit": COMMIT, "ETag": f'"{digest}"', "Accept-Ranges": "bytes"}
            self.answer(content, 200, **more)

    do_HEAD = do_GET

    def answer(self, content: Any, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body)), "Content-Type": "application/json"}).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Hub]]:
    monkeypatch.setenv("HF_TOKEN", "hf_geheim")
    monkeypatch.setattr(Hub, "files", {}, raising=False)
    monkeypatch.setattr(Hub, "seen", [], raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield Hub
        server.shutdown()


def test_the_hub(net: Path, tmp_path: Path, uri: str, hub: type[Hub]) -> None:
    done = pushed(net, "hf://lab/net", uri)
    assert done.address == f"hf://lab/net@{COMMIT}"
    assert set(hub.files) == FILES
    [created] = [json.loads(body) for path, _, body in hub.seen if path == "/api/repos/create"]
    assert created == {"name": "net", "organization": "lab", "visibility": "private"}
    hub.files["pytorch_model.bin"] = b"evil"
    hub.files["../../evil"] = b"evil"
    back = exchange.pull("hf://lab/net", register_as="taken", tracking_uri=uri)
    assert (back.model, back.revision) == ("models:/taken/1", COMMIT)
    asked = [path.rpartition("/")[2] for path, _, _ in hub.seen if "/resolve/" in path]
    assert set(asked) == {"model.json", "config.json", "model.safetensors"}
    exchange.pull("hf://lab/net@main", out=tmp_path / "back", tracking_uri=uri)
    assert torch.equal(logits(bundle.load(tmp_path / "back")[0]), logits(bundle.load(net)[0]))


@pytest.mark.parametrize(
    ("status", "kind"), [(401, UserError), (403, UserError), (404, UserError), (500, JobFailedError)]
)
def test_what_the_hub_refuses_is_one_line(
    net: Path, tmp_path: Path, uri: str, hub: type[Hub], monkeypatch: pytest.MonkeyPatch, status: int, kind: type
) -> None:
    monkeypatch.setattr(hub, "status", status)
    for action in (
        lambda: pushed(net, "hf://lab/net", uri),
        lambda: exchange.pull("hf://lab/net", out=tmp_path / "x", tracking_uri=uri),
    ):
        with pytest.raises(kind) as found:
            action()
        text = str(found.value)
        assert text.startswith("hf://lab/net: ")
        assert "\n" not in text
        assert "geheim" not in text
        assert len(text) < 300
    assert not (tmp_path / "x").exists()


def test_pushing_to_the_hub_needs_a_token(net: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UserError, match="log in with `hf auth login`, or set HF_TOKEN"):
        pushed(net, "hf://lab/net", uri)


@pytest.mark.parametrize("address", ["hf://a/b@main", "hf://a/b", "hf://A-1/b_2.c@v1.0/x"])
def test_addresses_of_the_hub(address: str) -> None:
    assert places.parsed(address).kind == "hf"
