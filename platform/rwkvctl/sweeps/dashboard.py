"""Optuna's dashboard over the study of a sweep, until it is stopped.

python -m rwkvctl.sweeps.dashboard SWEEP_FOLDER HOST PORT

The storage is read from the sweep's spec: its URL may hold what must not stand in a list of processes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from rwkvctl.base.errors import UserError, explain


class Server(ThreadingMixIn, WSGIServer):
    """A page asks for much at once."""

    daemon_threads = True


class Quiet(WSGIRequestHandler):
    """No line for each request."""

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    """Serve; one line where that cannot be."""
    from optuna_dashboard import wsgi

    from rwkvctl.sweeps import studies

    folder, host, port = sys.argv[1:]
    try:
        found = studies.of(Path(folder))
        if found is not None:
            make_server(host, int(port), wsgi(found[0]), Server, Quiet).serve_forever()
    except UserError as error:
        sys.exit(f"Optuna dashboard: {error}")
    except OSError as error:
        sys.exit(f"Optuna dashboard: {host}:{port}: {explain(error)}; give another --study-port")


if __name__ == "__main__":
    main()
