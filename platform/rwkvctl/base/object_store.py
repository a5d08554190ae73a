"""Object stores, `s3://bucket/...` or `gs://bucket/...`, through fsspec: what data sets and runs share.

Credentials and endpoint come from where the store's own tools look for them (environment, profile, instance role);
they are never part of a URI and never printed.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, TypeVar

from rwkvctl.base.errors import UserError

T = TypeVar("T")

TRIES = 5
OPTIONS: dict[str, dict[str, Any]] = {
    # botocore sends a request again after 5xx, throttling and time-outs, each time after a longer pause; not after 403.
    "s3": {"config_kwargs": {"retries": {"mode": "standard", "total_max_attempts": TRIES}}},
    "gs": {},
}
NO_CREDENTIALS = frozenset(
    {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "DefaultCredentialsError"}
)


class StoreError(UserError):
    """A store that did not do what it was asked: one line without any secret.

    status: what it answered (403, 404, 412, 500 ...); 0 where it did not answer.
    """

    def __init__(self, message: str, status: int = 0):
        super().__init__(message)
        self.status = status

    @property
    def may_pass(self) -> bool:
        """Whether the same request may be answered later: not a refusal."""
        return self.status not in (400, 401, 403, 404, 405, 412, 501)


def key_of(uri: str) -> str:
    """bucket/path, the name that fsspec gives to an object."""
    return uri.partition("://")[2].strip("/")


def filesystem(uri: str, **options: Any) -> Any:
    """fsspec's file system of a URI's scheme; what it once listed is not remembered.

    UserError when the package for it is not installed.
    """
    import fsspec

    scheme = uri.partition("://")[0]
    try:
        return fsspec.filesystem(scheme, use_listings_cache=False, **(OPTIONS[scheme] | options))
    except ImportError:
        raise UserError(
            f"{uri}: {scheme}:// needs a package that is not installed: pip install 'rwkvctl[{scheme}]'"
        ) from None


def plain_errors(uri: str, action: Callable[[Any], T]) -> T:
    """What `action` returns for the store of `uri`; StoreError for whatever goes wrong."""
    store = filesystem(uri)
    return plainly(uri, lambda: action(store), TRIES)


def plainly(uri: str, action: Callable[[], T], tries: int) -> T:
    """What `action` returns; StoreError, which names `uri`, for whatever goes wrong in the store."""
    try:
        return action()
    except OSError as error:
        if error.filename is not None or error.errno == errno.ENOSPC:  # of this machine's disk
            raise
        raise said_plainly(uri, error, tries) from None
    except Exception as error:
        raise said_plainly(uri, error, tries) from None


def said_plainly(uri: str, error: Exception, tries: int) -> StoreError:
    """A library's message may quote a request, so only its kind is shown."""
    kind = type(error).__name__
    status = status_of(error)
    if isinstance(error, FileNotFoundError):
        return StoreError(f"{uri}: not found (404); check the name and the bucket", 404)
    if isinstance(error, PermissionError):
        return StoreError(f"{uri}: access denied (403); check the credentials and the bucket's policy", 403)
    if kind in NO_CREDENTIALS:
        return StoreError(f"{uri}: no credentials; set them as the store's own tools want them", 401)
    number = getattr(error, "errno", None)
    detail = f"{kind}, errno {number}" if number else kind
    return StoreError(f"{uri}: the store fails or cannot be reached, {tries} tries ({detail})", status)


def status_of(error: BaseException) -> int:
    """The HTTP status that a library's error stands for; 0 where there was no answer."""
    response = getattr(error.__cause__ or error, "response", None)
    try:
        return int(response["ResponseMetadata"]["HTTPStatusCode"])  # type: ignore[index]
    except (KeyError, TypeError, ValueError):
        return 0
