"""Settings of a machine: defaults, file, environment, and the way back."""

from __future__ import annotations

from pathlib import Path

import pytest

from rwkvctl.base.errors import UserError
from rwkvctl.base.paths import config_file
from rwkvctl.config import settings


def test_defaults_need_nothing_and_write_nothing(home: Path):
    found = settings.load()
    assert found.address is None
    assert found.tracking_uri == f"sqlite:///{home / 'mlflow.db'}"
    assert (found.data_root, found.storage) == (str(home / "data"), str(home / "runs"))
    assert not home.exists()


@pytest.mark.parametrize(("key", "variable"), settings.ENVIRONMENT.items())
def test_the_environment_wins_over_the_file(key: str, variable: str, monkeypatch: pytest.MonkeyPatch):
    own = {
        "cache_gb": ("7", "0.5"),
        "decoded_gb": ("7", "0.5"),
        "address": ("file:1", "environment:2"),
        "mirrors": ("tensorboard", "wandb"),
    }
    in_file, in_environment = own.get(key, ("/from/file", "/from/environment"))
    kind = type(getattr(settings.load(), key) or "")
    settings.save(key, in_file)
    assert getattr(settings.load(), key) == kind(in_file)
    monkeypatch.setenv(variable, in_environment)
    assert getattr(settings.load(), key) == kind(in_environment)
    monkeypatch.setenv(variable, "")
    assert getattr(settings.load(), key) == kind(in_file)


def test_unset_returns_to_the_default(home: Path):
    settings.save("storage", "/there")
    settings.save("gpus_per_node", "8")
    assert settings.save("storage", None).storage == str(home / "runs")
    assert settings.load().gpus_per_node == 8


@pytest.mark.parametrize("key", ["storage", "data_root"])
def test_a_relative_path_means_where_it_was_set(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    settings.save(key, "shards")
    monkeypatch.chdir("/")
    assert getattr(settings.load(), key) == str(tmp_path / "shards")


@pytest.mark.parametrize(
    ("path", "absolute"),
    [("s3://bucket/x", "s3://bucket/x"), ("/a/b", "/a/b"), ("~/x", str(Path("~/x").expanduser()))],
)
def test_absolute(path: str, absolute: str):
    assert settings.absolute(path) == absolute


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("adress", "x", r"config key 'adress' is unknown; the keys are address, "),
        ("gpus_per_node", "four", r"gpus_per_node: input should be a valid integer"),
        ("gpus_per_node", "-1", r"gpus_per_node: input should be greater than or equal to 0"),
        ("storage", "gs://bucket/runs", r"storage: must be a folder that all workers see, or s3://bucket/prefix"),
        ("storage", "s3://bucket/../runs", r"storage: must be a folder that all workers see, or s3://bucket/prefix"),
        ("cache_dir", "s3://bucket/cache", r"cache_dir: must be a folder of this machine, not a URL"),
        ("cache_dir", "gs://bucket", r"cache_dir: must be a folder"),
        ("address", "head", r"address: must be HOST:PORT"),
        ("mirrors", "tensorboard,wand", r"mirrors: 'wand' is none of tensorboard, wandb"),
        ("address", "head:99999", r"address: must be HOST:PORT"),
    ],
)
def test_wrong_settings_are_not_saved(key: str, value: str, said: str):
    with pytest.raises(UserError, match=said):
        settings.save(key, value)
    assert not config_file().exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"storage: [", "not valid YAML"),
        (b"\xff", "not valid YAML"),
        (b"- 1", "must hold `key: value` lines"),
        (b"stroage: x", r"stroage: unknown field \(did you mean storage\?\)"),
        (b"storage: 3", "storage: input should be a valid string"),
    ],
)
def test_a_damaged_file_is_named(content: bytes, said: str):
    config_file().parent.mkdir(parents=True)
    config_file().write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        settings.load()
    assert str(caught.value).startswith(str(config_file()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("RWKVCTL_CACHE_GB", "lots", "RWKVCTL_CACHE_GB: input should be a valid number"),
        ("RWKVCTL_CACHE_GB", "0", "RWKVCTL_CACHE_GB: input should be greater than 0"),
        ("RWKVCTL_CACHE_GB", "nan", "RWKVCTL_CACHE_GB: input should be a finite number"),
        ("RWKVCTL_DECODED_GB", "inf", "RWKVCTL_DECODED_GB: input should be a finite number"),
        ("RWKVCTL_DECODED_GB", "-1", "RWKVCTL_DECODED_GB: input should be greater than or equal to 0"),
        ("RWKVCTL_STORAGE", "http://bucket", "RWKVCTL_STORAGE: must be a folder"),
        ("RWKVCTL_CACHE", "s3://bucket", "RWKVCTL_CACHE: must be a folder"),
        ("RAY_ADDRESS", "ray head", "RAY_ADDRESS: must be HOST:PORT"),
    ],
)
def test_a_wrong_variable_is_named(variable: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError) as caught:
        settings.load()
    assert str(caught.value).startswith(said)
    assert "config.yaml" not in str(caught.value)
    assert value in str(caught.value)


@pytest.mark.parametrize("address", ["head:6379", "10.0.0.1:6379", "[::1]:6379", "http://head:8265",
                                     "https://ray.example.org", "auto"])  # fmt: skip
def test_addresses(address: str):
    assert settings.save("address", address).address == address


@pytest.mark.parametrize("inside", ["", "/below"])
def test_a_home_that_is_a_file_is_named(inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "blocked").touch()
    monkeypatch.setenv("RWKVCTL_HOME", f"{tmp_path}/blocked{inside}")
    with pytest.raises(UserError, match=f"{tmp_path}/blocked is a file; set RWKVCTL_HOME to a folder"):
        settings.load()
