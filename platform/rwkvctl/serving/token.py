"""The token of a server: where it comes from, and when there must be one."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

from rwkvctl.base.errors import UserError

TOKEN = "RWKVCTL_SERVE_TOKEN"
"""The variable that it may be in. No option has it: every user of a machine sees those."""
SHORTEST = 16


def read_token(file: str | None) -> str | None:
    """Of a file, or else of the environment; None where there is none."""
    if file is None:
        return os.environ.get(TOKEN) or None
    try:
        return Path(file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise UserError(f"--token-file {file}: cannot be read ({reason})") from None


def check_token(token: str | None, host: str) -> None:
    """UserError for a server that others would reach without a token, and for a token that can be guessed."""
    if token is not None and (len(token) < SHORTEST or not token.isascii() or not token.isprintable() or " " in token):
        raise UserError(
            f"the token must have {SHORTEST} printable characters or more, without spaces; make one with: "
            "openssl rand -hex 32"
        )
    if token is None and not is_loopback(host):
        raise UserError(
            f"--host {host}: others reach this address, and there is no token; give --token-file FILE, or set {TOKEN}"
        )


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
