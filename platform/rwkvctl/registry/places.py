"""Where models are pushed to and pulled from: a folder, an object store, a repository of the Hugging Face hub."""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rwkvctl.base.errors import UNUSABLE, JobFailedError, UserError, explain
from rwkvctl.base.files import fsync_directory
from rwkvctl.base.uris import check, mask
from rwkvctl.models.bundle import HUB_WEIGHTS_NAME, INFO_NAME, WEIGHTS_NAME
from rwkvctl.registry.hub_form import CONFIG_NAME, FILES, PICKLES, TEXT_BYTES, explain_missing
from rwkvctl.runs.objects import Objects

T = TypeVar("T")
REPOSITORY = re.compile(r"hf://(?P<name>[\w][\w.-]*/[\w][\w.-]*)(?:@(?P<revision>[\w][\w./-]*))?")
WEIGHTS = (HUB_WEIGHTS_NAME, WEIGHTS_NAME)
"""In the hub's form, and in that of a run's own model folder."""


@dataclass(frozen=True)
class Place:
    """Somebody's address of a model."""

    address: str
    kind: str
    """`folder`, `s3` or `hf`."""

    def __str__(self) -> str:
        return mask(self.address)


def parsed(address: str) -> Place:
    """UserError for an address of another kind, or with a password in it."""
    check(address, "model")
    scheme = address.partition("://")[0] if "://" in address else ""
    if scheme == "hf":
        if REPOSITORY.fullmatch(address) is None:
            raise UserError(f"{address[:100]}: write hf://OWNER/NAME, or hf://OWNER/NAME@REVISION")
        return Place(address, "hf")
    if scheme == "s3":
        if not address.removeprefix("s3://").strip("/").partition("/")[2]:
            raise UserError(f"{address[:100]}: write s3://BUCKET/PREFIX")
        return Place(address.rstrip("/"), "s3")
    if scheme:
        raise UserError(f"{address[:100]}: give a folder, s3://BUCKET/PREFIX or hf://OWNER/NAME")
    return Place(str(Path(address).expanduser().absolute()), "folder")


# To a place ----------------------------------------------------------------------------------------------------------


def check_free(place: Place, *, overwrite: bool) -> None:
    """UserError where something is that must not be replaced."""
    if place.kind == "hf":  # whose repositories keep what they had
        hub_token(place)
        return
    if place.kind == "s3":
        taken = Objects(place.address).read(INFO_NAME) is not None
        if taken and not overwrite:
            raise UserError(f"{place}: has a model already; give another prefix, or --overwrite")
        return
    target = Path(place.address)
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not (target / INFO_NAME).is_file():
        raise UserError(f"{target}: is not empty and no model; give a new folder")
    if not overwrite:
        raise UserError(f"{target}: has a model already; give another folder, or --overwrite")


def send(form: Path, place: Place, *, public: bool = False, message: str = "") -> str:
    """Bring a folder in the hub's form to a place, and return where it is. In a folder it appears whole; elsewhere
    `model.json` comes last."""
    if place.kind == "hf":
        return to_hub(form, place, public=public, message=message)
    if place.kind == "s3":
        objects = Objects(place.address)
        objects.delete([INFO_NAME])
        for name in FILES:
            objects.send(form / name, name)
        return place.address
    put_folder(form, Path(place.address))
    return place.address


def put_folder(made: Path, target: Path) -> None:
    """Copy a folder to where it is to be; it appears whole, in place of the model that may be there."""
    new, old = (target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.{what}") for what in ("new", "old"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        new.mkdir()
        for path in made.iterdir():
            with shutil.copyfile(path, new / path.name).open("rb") as file:
                os.fsync(file.fileno())
        if target.exists():
            target.rename(old)
        new.rename(target)
        fsync_directory(target.parent)
    except OSError as error:
        if error.errno in UNUSABLE:
            raise UserError(f"{target}: cannot be written ({explain(error)}); give another folder") from None
        raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def to_hub(form: Path, place: Place, *, public: bool, message: str) -> str:
    """One commit; a repository that is new is private unless `public`."""
    name, revision = repository(place)
    api = hub(place)
    asked(place, lambda: api.create_repo(name, private=not public, exist_ok=True))
    made = asked(
        place,
        lambda: api.upload_folder(
            repo_id=name, folder_path=form, revision=revision, commit_message=message, allow_patterns=list(FILES)
        ),
    )
    return f"hf://{name}@{made.oid}"


# From a place --------------------------------------------------------------------------------------------------------


def fetch(place: Place, into: Path) -> str:
    """Copy the files of a model, by their fixed names and no others, into an empty folder; returns the commit of a
    repository, else nothing. UserError where there is no model that we take."""
    if place.kind == "hf":
        return from_hub(place, into)
    if place.kind == "s3":
        objects = Objects(place.address)
        sizes = {name: entry.size for name, entry in objects.entries(deep=False).items()}
        take(sizes, place, into, lambda name: objects.fetch(name, into / name), sizes)
        return ""
    source = Path(place.address)
    if source.is_file():
        if source.name.lower().endswith(PICKLES):
            raise explain_missing([source.name], {}, str(source))
        raise UserError(f"{source}: is a file; give the folder of a model")
    if not source.is_dir():
        raise UserError(f"{source}: no such folder")
    names = [path.name for path in source.iterdir()]
    take(names, place, into, lambda name: shutil.copyfile(source / name, into / name))
    return ""


def take(
    names: Iterable[str],
    place: Place,
    into: Path,
    get: Callable[[str], Any],
    sizes: dict[str, int] | None = None,
) -> None:
    """Fetch what is needed of what is there."""
    there = set(names)
    for name in (INFO_NAME, CONFIG_NAME):
        if name in there:
            if sizes is not None and sizes.get(name, 0) > TEXT_BYTES:
                raise UserError(f"{place}: {name} has more than {TEXT_BYTES >> 20} MB; it is none of a model")
            get(name)
    if INFO_NAME not in there:
        raise explain_missing(sorted(there), as_fields(into / CONFIG_NAME), str(place))
    weights = next((name for name in WEIGHTS if name in there), None)
    if weights is None:
        pickles = [name for name in there if name.lower().endswith(PICKLES)]
        if pickles:
            raise explain_missing(pickles, {}, str(place))
        raise UserError(f"{place}: {HUB_WEIGHTS_NAME} is missing: the model is incomplete, get it again")
    get(weights)


def as_fields(path: Path) -> dict[str, Any]:
    """A JSON file as a mapping; empty where it is none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def from_hub(place: Place, into: Path) -> str:
    name, revision = repository(place)
    api = hub(place)
    known = asked(place, lambda: api.model_info(name, revision=revision, files_metadata=True))
    sizes = {each.rfilename: each.size or 0 for each in known.siblings or []}

    def get(file: str) -> None:
        asked(place, lambda: api.hf_hub_download(name, file, revision=known.sha, local_dir=into))

    take(sizes, place, into, get, sizes)
    return known.sha or ""


# The hub -------------------------------------------------------------------------------------------------------------


def repository(place: Place) -> tuple[str, str | None]:
    found = REPOSITORY.fullmatch(place.address)
    assert found is not None, "the address was parsed"
    return found["name"], found["revision"]


def hub(place: Place) -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="rwkvctl")


def hub_token(place: Place) -> None:
    """UserError unless this user is logged in."""
    from huggingface_hub import get_token

    if not get_token():
        raise UserError(f"{place}: pushing needs a token: log in with `hf auth login`, or set HF_TOKEN")


def asked(place: Place, action: Callable[[], T]) -> T:
    """What the hub answers; its refusals are UserError, its failures JobFailedError, in one line without a token."""
    try:
        return action()
    except Exception as error:  # the library's own, its client's and the disk's
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            raise  # of this machine's disk
        status = getattr(getattr(error, "response", None), "status_code", 0)
        reason = mask(" ".join(str(error).split()))[:120]
        if status in (401, 403, 404):
            meaning = {401: "wrong or no token", 403: "not allowed", 404: "not found, or not for this token"}[status]
            raise UserError(f"{place}: {status}, {meaning}; check the name, and log in with `hf auth login`") from None
        raise JobFailedError(f"{place}: the hub fails or cannot be reached ({reason}); try again") from error
