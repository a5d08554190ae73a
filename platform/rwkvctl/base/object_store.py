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
    """A store that did not do what it was asked: one line without any secret. `error` is the library's own."""

    def __init__(self, message: str, error: BaseException):
        super().__init__(message)
        self.error = error


def key_of(uri: str) -> str:
    """bucket/path, the name that fsspec gives to an object."""
    return uri.partition("://")[2].strip("/")


def filesystem(uri: str) -> Any:
    """fsspec's file system of a URI's scheme; what it once listed is not remembered.

    UserError when the package for it is not installed.
    """
    import fsspec

    scheme = uri.partition("://")[0]
    try:
        return fsspec.filesystem(scheme, use_listings_cache=False, **OPTIONS[scheme])
    except ImportError:
        raise UserError(
            f"{uri}: {scheme}:// needs a package that is not installed: pip install 'rwkvctl[{scheme}]'"
        ) from None


def plain_errors(uri: str, action: Callable[[Any], T]) -> T:
    """What `action` returns for the store of `uri`; StoreError for whatever goes wrong."""
    store = filesystem(uri)
    try:
        return action(store)
    except OSError as error:
        if error.filename is not None or error.errno == errno.ENOSPC:  # of this machine's disk
            raise
        raise said_plainly(uri, error) from None
    except Exception as error:
        raise said_plainly(uri, error) from None


def said_plainly(uri: str, error: Exception) -> StoreError:
    """A library's message may quote a request, so only its kind is shown."""
    kind = type(error).__name__
    if isinstance(error, FileNotFoundError):
        return StoreError(f"{uri}: not found (404); check the name and the bucket", error)
    if isinstance(error, PermissionError):
        return StoreError(f"{uri}: access denied (403); check the credentials and the bucket's policy", error)
    if kind in NO_CREDENTIALS:
        return StoreError(f"{uri}: no credentials; set them as the store's own tools want them", error)
    number = getattr(error, "errno", None)
    detail = f"{kind}, errno {number}" if number else kind
    return StoreError(f"{uri}: the store fails or cannot be reached, {TRIES} tries ({detail})", error)
