"""Secrets in the addresses of servers and databases: found and never shown.

A password in a URI would be written into the spec, the tracking server, logs and the list of processes. So no URI with
one is taken (`refuse_secrets`), and one that comes all the same, from a variable say, is masked before it is shown.
"""

from __future__ import annotations

import os
import re
from urllib.parse import unquote

from rwkvctl.base.errors import UserError

SECRET_KEYS = re.compile(
    r"passw|passphrase|passwd|secret|token|api[-_]?key|access[-_]?key|credential|signature|^(pwd|sig|auth|key)$", re.I
)
"""Names in a query string whose values are secrets; a part of the name is enough (`sslpassword`, `X-Amz-Signature`)."""
SECRET_NAMES = re.compile(
    r"passw|passphrase|(?<![a-z])(pwd|secret|token|credentials?|auth|(api|access|private|secret)[-_. ]?key)(?![a-z])"
)
"""Names of parameters and tags whose values are secrets: `db_password` and `hf_token`, but not `tokenizer`."""
SECRET_VALUES = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|gh[opsur]_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16}|xox[abp]-[\w-]{20,}|sk-[\w-]{30,})"
)
"""Tokens that services have given a form of their own."""
_ASSIGNED = re.compile(r"""(?P<name>[\w.-]+)(?P<between>=|"\s*:\s*")(?P<value>[^\s'"&;]+)""")
"""`--set name=value` in a command line, and `"name": "value"` in JSON."""
PLAIN = re.compile(r"[+-]?(\d+\.?\d*([eE][+-]?\d+)?|true|false|none|null)?", re.IGNORECASE)
MASK = "***"

_PASSWORD = r":(?!\d+[/?#])(?:[^\s'\"?]*(?=@)|[^\s'\"]*?(?=@))"  # digits before a slash are a port
_USER = re.compile(rf"(?:(?<=://)|(?<=:/))(?P<user>[^/?#@:\s'\"]*)(?P<password>{_PASSWORD})?@")
_QUERY = re.compile(r"(?P<start>[?&;#])(?P<key>[^=&;#?\s]+)=(?P<value>[^&;#\s'\"]*)")


def has_secret(uri: str) -> bool:
    """Whether a URI has a password, or a token in place of a user, or a secret in its query or fragment."""
    return mask(uri) != uri


def mask(text: str) -> str:
    """A URI, or a text with URIs in it, with `***` for every secret, also where a path was made of one (`s3:/x`)."""
    return _QUERY.sub(_masked_value, _USER.sub(_masked_user, text)) if ":/" in text else text


def mask_value(name: str, value: str) -> str:
    """The value of a parameter or a tag, which anyone may have written, without the secrets that can be told as such.

    >>> mask_value("hf_token", "abc"), mask_value("max_tokens", "196"), mask_value("note", "see s3://me:pw@host/b")
    ('***', '196', 'see s3://me:***@host/b')
    >>> mask_value("command", "rwkvctl finetune --set x.api_key=abc --set seed=3"), mask_value("a", '{"pwd": "x"}')
    ('rwkvctl finetune --set x.api_key=*** --set seed=3', '{"pwd": "***"}')
    """
    if _is_secret(name, value):
        return MASK
    return _ASSIGNED.sub(_masked_assignment, mask(SECRET_VALUES.sub(MASK, value)))


def _is_secret(name: str, value: str) -> bool:
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    if not value or not SECRET_NAMES.search(words):
        return False
    return "passw" in words or not PLAIN.fullmatch(value)


def _masked_assignment(found: re.Match[str]) -> str:
    value = MASK if _is_secret(found["name"], found["value"]) else found["value"]
    return f"{found['name']}{found['between']}{value}"


def _masked_user(found: re.Match[str]) -> str:
    if found["password"] not in (None, ":", f":{MASK}"):
        return f"{found['user']}:{MASK}@"
    return f"{MASK}@" if _is_token(found["user"]) else found[0]


def _is_token(user: str) -> bool:
    """A user's name alone is no secret, as in `postgresql://ann@host/db`; a token in its place is long and mixed."""
    return len(user) >= 20 and any(c.isdigit() for c in user) and any(c.isalpha() for c in user)


def _masked_value(found: re.Match[str]) -> str:
    secret = SECRET_KEYS.search(found["key"]) and found["value"] not in ("", MASK)
    return f"{found['start']}{found['key']}={MASK}" if secret else found[0]


def refuse_secrets(uri: str) -> str:
    """The URI itself; ValueError, which shows no secret, where it has one."""
    if not has_secret(uri):
        return uri
    raise ValueError(f"must not contain a password or token; {remedy(uri)}")


def check(uri: str, what: str) -> None:
    """UserError, which begins with `what`, where a URI has a secret."""
    try:
        refuse_secrets(uri)
    except ValueError as error:
        raise UserError(f"{what} {mask(uri)[:100]}: {error}") from None


def remedy(uri: str) -> str:
    """Where the credentials of such a server belong."""
    scheme = uri.partition("://")[0].partition("+")[0].lower()
    if scheme in ("http", "https"):
        return "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN) in the environment"
    if scheme in ("postgresql", "postgres"):
        return "set PGPASSWORD in the environment, or keep it in ~/.pgpass with mode 600"
    if scheme in ("mysql", "mariadb"):
        return "keep it in a file with mode 600 and add ?read_default_file=FILE to the URI"
    if scheme in ("s3", "gs"):
        return "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, in the environment"
    return "keep credentials in the environment or in a file with mode 600"


def to_environment(variable: str) -> str:
    """The URI in an environment variable, its user and password moved to the variables that MLflow's client and
    libpq read them from, so that it can be stored and shown, and child processes still get in.

    UserError for a secret that no such variable is known for.
    """
    uri = os.environ[variable]
    if not has_secret(uri):
        return uri
    scheme = uri.partition("://")[0].partition("+")[0].lower()
    found = _USER.search(uri)
    plain = uri
    if found is not None and found["password"] and scheme in ("http", "https"):
        os.environ.setdefault("MLFLOW_TRACKING_USERNAME", unquote(found["user"]))
        os.environ.setdefault("MLFLOW_TRACKING_PASSWORD", unquote(found["password"][1:]))
        plain = uri.replace(found[0], "", 1)
    elif found is not None and found["password"] and scheme in ("postgresql", "postgres"):
        os.environ.setdefault("PGPASSWORD", unquote(found["password"][1:]))
        plain = uri.replace(found[0], f"{found['user']}@", 1)
    try:
        os.environ[variable] = refuse_secrets(plain)
    except ValueError as error:
        raise UserError(f"{variable} ({mask(uri)[:100]}): {error}") from None
    return plain
