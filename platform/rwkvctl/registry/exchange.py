"""Models go to others and come from them: `rwkvctl model push` and `rwkvctl model pull`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rwkvctl.base.errors import JobFailedError, UserError
from rwkvctl.base.names import model_name_problem
from rwkvctl.base.uris import mask
from rwkvctl.config.specs.parts import TrackingSpec
from rwkvctl.models import bundle
from rwkvctl.registry import card as cards
from rwkvctl.registry import hub_form, places
from rwkvctl.registry.lineage import REGISTERED, resolve, with_weights
from rwkvctl.registry.places import Place
from rwkvctl.registry.register import register
from rwkvctl.registry.tags import PULLED_FROM, PULLED_REVISION, WEIGHTS_TAG, fields
from rwkvctl.registry.versions import model_names, versions_of
from rwkvctl.runs.mlflow_client import connect, experiment_id, is_silent
from rwkvctl.runs.sync import first_line

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class Pushed:
    """Where a model has gone."""

    address: str
    weights: str
    """SHA-256."""
    registered: str
    """The version that it is; empty where none is known."""
    note: str = ""
    """Why the card has no scores."""


@dataclass(frozen=True)
class Pulled:
    """What has come: a version of a registered model, or a folder."""

    source: str
    revision: str
    weights: str
    kind: str
    model: str
    """`models:/NAME/VERSION`, or the folder's path."""


def push(
    reference: str,
    model_folder: Path,
    target: str,
    *,
    tracking_uri: str,
    licence: str = "",
    overwrite: bool = False,
    public: bool = False,
) -> Pushed:
    """Bring a model folder, which `reference` stands for, to a place in the form of the Hugging Face hub.

    Raises:
        UserError: the target has something else, or the model folder is damaged.
        JobFailedError: the hub fails.
    """
    place = places.parsed(target)
    places.check_free(place, overwrite=overwrite)
    card, registered, note = card_of(reference, model_folder, tracking_uri)
    with tempfile.TemporaryDirectory() as folder:
        info = hub_form.write(Path(folder), model_folder, card, licence)
        message = f"rwkvctl model push: weights {info.weights_sha256[:12]}"
        address = places.send(Path(folder), place, public=public, message=message)
    return Pushed(address, info.weights_sha256, registered, note)


def card_of(reference: str, model_folder: Path, tracking_uri: str) -> tuple[cards.Card, str, str]:
    """The card of the version that has these weights, and its URI; without one, what the folder says, and why."""
    info = bundle.read_info(model_folder)
    note = "no registered version has these weights, so the card has no scores"
    try:
        if is_silent(tracking_uri):
            raise TimeoutError("it does not answer")
        client = connect(tracking_uri)
        named = reference.startswith(REGISTERED) and not reference.endswith("/latest")
        version = resolve(client, reference) if named else with_weights(client, info.weights_sha256)
        if version is not None:
            return cards.of_version(client, version), f"{REGISTERED}{version.name}/{version.version}", ""
    except UserError:
        raise
    except Exception as error:  # whatever a server can do: the model is here
        note = f"MLflow at {mask(tracking_uri)[:80]}: {first_line(error)}, so the card has no scores"
    parameters = sum(tensor.numel() for tensor in bundle.build(info).parameters())
    name = str(info.extra.get("run") or info.model.get("name", "model"))
    return cards.of_bundle(info, name, parameters), "", note


def pull(
    source: str,
    *,
    register_as: str | None = None,
    out: str | Path | None = None,
    tracking_uri: str,
    overwrite: bool = False,
) -> Pulled:
    """Fetch a model, check all of it, and make it a version of a registered model, or a folder.

    Raises:
        UserError: there is no such model, or one that we do not take (`hub_form.read`); the name has versions of
            another kind; the folder has something else.
        JobFailedError: the hub fails.
    """
    place = places.parsed(source)
    target = None if out is None else places.parsed(str(out))
    if target is not None and target.kind != "folder":
        raise UserError(f"--out {target}: give a folder of this machine")
    if register_as is not None and (problem := model_name_problem(register_as)) is not None:
        raise UserError(problem)
    if target is not None:
        places.check_free(target, overwrite=overwrite)
    with tempfile.TemporaryDirectory() as temporary:
        fetched, made = Path(temporary) / "fetched", Path(temporary) / "model"
        fetched.mkdir()
        revision = places.fetch(place, fetched)
        _, info = hub_form.read(fetched, str(place))
        made.mkdir()
        bundle.weights_path(fetched).replace(made / bundle.WEIGHTS_NAME)
        bundle.write_info(made, info)
        if target is not None:
            places.put_folder(made, Path(target.address))
            return Pulled(str(place), revision, info.weights_sha256, info.kind, target.address)
        assert register_as is not None
        with or_failed(tracking_uri):
            uri = registered(made, info, register_as, place, revision, tracking_uri)
        return Pulled(str(place), revision, info.weights_sha256, info.kind, uri)


@contextmanager
def or_failed(tracking_uri: str) -> Iterator[None]:
    """Whatever MLflow raises in the block as JobFailedError in one line; UserError stays what it is."""
    try:
        yield
    except (UserError, JobFailedError):
        raise
    except Exception as error:
        where = f"MLflow at {mask(tracking_uri)[:80]}"
        raise JobFailedError(f"{where}: {first_line(error)}; nothing is registered: try again") from error


def registered(folder: Path, info: bundle.BundleInfo, name: str, place: Place, revision: str, tracking_uri: str) -> str:
    """Make a model folder from elsewhere a version, once for the same weights from the same place."""
    client = connect(tracking_uri)
    for version in versions_of(client, name) if name in model_names(client) else []:
        tags = fields(version.tags)
        if tags.get(WEIGHTS_TAG) == info.weights_sha256 and tags.get(PULLED_FROM) == str(place):
            return f"{REGISTERED}{name}/{version.version}"
        if tags.get("kind", info.kind) != info.kind:
            raise UserError(f"--register-as {name}: its versions are {tags['kind']} models, and {place} is {info.kind}")
    origin = {PULLED_FROM: str(place), PULLED_REVISION: revision}
    run_id = run_of_pull(client, tracking_uri, origin)
    parameters = sum(tensor.numel() for tensor in bundle.build(info).parameters())
    more = {**{key: value for key, value in origin.items() if value}, "parameters": parameters}
    return f"{REGISTERED}{name}/{register(run_id, folder, name, more, tracking_uri=tracking_uri)}"


def run_of_pull(client: MlflowClient, tracking_uri: str, origin: dict[str, str]) -> str:
    """The MLflow run that a pulled version belongs to, since each one has a run."""
    experiment = experiment_id(client, tracking_uri, TrackingSpec().experiment)
    tags = {f"rwkvctl.{key}": value for key, value in origin.items() if value}
    made = client.create_run(experiment, tags=tags, run_name=f"pull {origin[PULLED_FROM]}"[:250])
    client.set_terminated(made.info.run_id)
    run_id: str = made.info.run_id
    return run_id
