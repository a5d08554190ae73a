"""Secrets in URIs are found in every place where tools put them, and nothing else is taken for one."""

from __future__ import annotations

import pytest

from rwkvctl.base import uris
from rwkvctl.base.errors import UserError

WITH = {
    "postgresql://ann:hunter2@db.lab:5432/mlflow": "postgresql://ann:***@db.lab:5432/mlflow",
    "postgresql+psycopg2://ann:p@ss/wo:rd@db/mlflow": "postgresql+psycopg2://ann:***@db/mlflow",
    "mysql+pymysql://ann:a?b@db/x": "mysql+pymysql://ann:***@db/x",
    "https://ann:hunter2@mlflow.lab/": "https://ann:***@mlflow.lab/",
    "https://:hunter2@mlflow.lab": "https://:***@mlflow.lab",
    "https://dapi0123456789abcdef0123@mlflow.lab": "https://***@mlflow.lab",
    "https://mlflow.lab/?token=hunter2&x=1": "https://mlflow.lab/?token=***&x=1",
    "postgresql://db/x?user=ann&password=hunter2": "postgresql://db/x?user=ann&password=***",
    "s3://key:hunter2@bucket/x": "s3://key:***@bucket/x",
    "/home/ann/s3:/key:hunter2@bucket/x": "/home/ann/s3:/key:***@bucket/x",
    "https://s.lab/x?X-Amz-Signature=abc&X-Amz-Security-Token=d": (
        "https://s.lab/x?X-Amz-Signature=***&X-Amz-Security-Token=***"
    ),
}
WITHOUT = [
    "sqlite:////home/ann@lab/mlflow.db", "http://127.0.0.1:5000", "https://mlflow.lab:443/a@b", "head:6379",
    "postgresql://ann@db:5432/mlflow", "postgresql://db:5432/mlflow?application_name=a@b&sslmode=require", 
    "shards/acdc",
    "s3://bucket/data?region=eu&author=ann", "http://head:8265/?x=a@b", "postgresql://ann:***@db/x",
    "models:/net@champion",
]  # fmt: skip


@pytest.mark.parametrize(("uri", "shown"), WITH.items())
def test_secrets_are_masked_and_refused_without_being_shown(uri: str, shown: str) -> None:
    assert uris.mask(uri) == shown
    assert uris.mask(f"cannot reach '{uri}' now") == f"cannot reach '{shown}' now"
    with pytest.raises(UserError, match=r"^--to .*: must not contain a password or token; (set|keep) ") as caught:
        uris.check(uri, "--to")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("uri", WITHOUT)
def test_what_has_no_secret_stays(uri: str) -> None:
    assert uris.mask(uri) == uri
    assert uris.refuse_secrets(uri) == uri


@pytest.mark.parametrize(
    ("uri", "plain", "variables"),
    [
        ("https://ann:p%40ss@mlflow.lab/x", "https://mlflow.lab/x",
         {"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": "p@ss"}),
        ("postgresql://ann:p@db/x?sslmode=require", "postgresql://ann@db/x?sslmode=require", {"PGPASSWORD": "p"}),
        ("http://mlflow.lab", "http://mlflow.lab", {}),
    ],
)  # fmt: skip
def test_a_variable_loses_its_secret_to_those_that_clients_read(
    uri: str, plain: str, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "PGPASSWORD")
    for name in names:
        monkeypatch.setenv(name, "x")  # so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert uris.to_environment("MLFLOW_TRACKING_URI") == plain
    import os

    assert {name: os.environ[name] for name in names if name in os.environ} == variables
    assert os.environ["MLFLOW_TRACKING_URI"] == plain


def test_a_variable_whose_secret_has_no_other_place_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.lab?token=hunter2")
    with pytest.raises(
        UserError, match=r"^MLFLOW_TRACKING_URI \(https://mlflow.lab\?token=\*\*\*\): must not contain a"
    ):
        uris.to_environment("MLFLOW_TRACKING_URI")


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("db.password", "hunter2", "***"),
        ("sslPassword", "12345678", "***"),
        ("hf_token", "hunter2", "***"),
        ("awsSecretAccessKey", "hunter2", "***"),
        ("note", "up with hf_abcdefghijklmnopqrstuv", "up with ***"),
        ("command", "rwkvctl x --set a.api_key=hunter2 --set seed=3", "rwkvctl x --set a.api_key=*** --set seed=3"),
        ("details", '{"pwd": "hunter2", "seed": 3}', '{"pwd": "***", "seed": 3}'),
        ("store", "s3://ann:hunter2@bucket/x", "s3://ann:***@bucket/x"),
        ("max_tokens", "196", "196"),
        ("tokenizer", "wordpiece", "wordpiece"),
        ("model.attention", "spatial_mix", "spatial_mix"),
        ("token", "", ""),
        ("author", "ann", "ann"),
        ("keyboard", "x=1", "x=1"),
    ],
)
def test_values_of_parameters_and_tags(name: str, value: str, shown: str) -> None:
    assert uris.mask_value(name, value) == shown
