"""The console script. `pip install rwkvctl` brings the model alone; what a command lacks then is said in one line."""

from __future__ import annotations

import sys

from rwkvctl.base.exit_codes import USER_ERROR
from rwkvctl.base.lineage import PACKAGES


def main() -> None:
    """Run the command line, whose libraries are those of `rwkvctl[platform]`."""
    try:
        from rwkvctl.cli import app

        app.main()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if not missing or missing in PACKAGES:
            raise
        print(f"error: {missing} is not installed; run: pip install 'rwkvctl[platform]'", file=sys.stderr)
        sys.exit(USER_ERROR)
