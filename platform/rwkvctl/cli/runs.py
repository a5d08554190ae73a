"""`rwkvctl sync | ui`: the tracking that shows what was run."""

from __future__ import annotations

from typing import Annotated

import typer


def sync(
    run: Annotated[str, typer.Argument(help="Name, path or MLflow id of a run.")],
    to: Annotated[str | None, typer.Option(help="Tracking server or database; by default that of the run.")] = None,
) -> None:
    """Send what a run has written in its journal to MLflow and its mirrors, and register its model; nothing is
    doubled."""
    from rwkvctl.config import settings
    from rwkvctl.config.specs.places import check_mirrors
    from rwkvctl.launch import observe
    from rwkvctl.registry.release import release_later
    from rwkvctl.runs import folder as run_folder
    from rwkvctl.runs import journal_mirrors, mirror
    from rwkvctl.runs.stored_journal import refresh
    from rwkvctl.runs.sync import or_failed, sync_run

    machine = settings.load()
    folder = run_folder.find(run, machine.storage)
    refresh(folder)
    mirror.pull(folder)
    tracking = run_folder.read_spec(folder).tracking
    names = tracking.mirrors if tracking.mirrors is not None else check_mirrors(machine.mirrors or "")
    journal_mirrors.check(names)
    uri = to or tracking.uri or machine.tracking_uri
    sent = sync_run(folder, uri, tracking.experiment)
    with or_failed(folder.name, uri):
        registered = release_later(folder, uri)
    mirrors = journal_mirrors.JournalMirrors(folder, names)
    if names and not (observe.one(folder).ended and mirrors.write_all()):
        print(f"{folder.name}: the run itself writes {' and '.join(names)}, and is still running")
    elif shown := [name for name in names if name not in mirrors.failed]:
        print(f"{folder.name}: {' and '.join(shown)} up to date in {folder}")
    print(f"{folder.name}: MLflow run {sent.run_id} at {uri}: {sent.metrics} metrics, {sent.artifacts} artifacts")
    if registered is not None:
        print(f"registered {registered}")


def front_page(uri: str, server: str) -> str:
    """Where a server over a tracking URI shows the runs of the experiment that jobs use; its start page where there is
    no such experiment yet, or it can't be asked."""
    import contextlib

    from rwkvctl.config.specs.parts import TrackingSpec
    from rwkvctl.runs import experiment_view
    from rwkvctl.runs.mlflow_client import connect, is_silent

    with contextlib.suppress(Exception):  # of whatever a server can do; the address is of use all the same
        if not is_silent(uri):
            client = connect(uri)
            found = client.get_experiment_by_name(TrackingSpec().experiment)
            if found is not None:
                experiment_view.dress(client, found.experiment_id)
                return experiment_view.of_experiment(server, found.experiment_id)
    return server


def ui(
    sweep: Annotated[
        str | None,
        typer.Argument(metavar="[SWEEP]", help="Sweep for Optuna's dashboard; by default the newest."),
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 5000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    study_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of Optuna's dashboard.")] = 8080,
) -> None:
    """Open the MLflow UI on this machine's tracking database (a remote server has its own), and Optuna's dashboard on
    the study of a sweep, where it is installed."""
    import os
    import sys

    from rwkvctl.base.errors import UserError
    from rwkvctl.base.exit_codes import INTERRUPTED
    from rwkvctl.base.processes import run_group
    from rwkvctl.config import settings

    machine = settings.load()
    uri = machine.tracking_uri
    if uri.startswith(("http://", "https://")):
        print(f"the tracking server has its own UI: {front_page(uri, uri)}", flush=True)
        dashboard = dashboard_of(sweep, machine.storage, host, study_port) if sweep is not None else []
        if dashboard and run_group(dashboard) == INTERRUPTED:
            raise KeyboardInterrupt
        return
    dashboard = dashboard_of(sweep, machine.storage, host, study_port)
    print(f"MLflow UI: {front_page(uri, f'http://{host}:{port}')} (Ctrl-C ends it)", flush=True)
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # eight processes that nothing here needs
    command = [sys.executable, "-P", "-m", "mlflow", "ui", "--backend-store-uri", uri]
    command += ["--workers", "1"]  # of four, each imports all of MLflow
    code = run_group([*command, "--host", host, "--port", str(port)], *([dashboard] if dashboard else []))
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise UserError(f"mlflow ui ended with code {code}: is port {port} in use? give another --port")


def dashboard_of(sweep: str | None, storage: str, host: str, port: int) -> list[str]:
    """The command that shows a sweep's study in Optuna's dashboard, whose address is printed; of none that was named,
    the newest that has a study. Empty where there is none, or no dashboard: that is told if there is something to see.

    Raises:
        UserError: the sweep that was named has no study, or it cannot be opened.
    """
    import importlib.util
    import sys

    from rwkvctl.base.errors import UserError
    from rwkvctl.sweeps import studies

    try:
        found = studies.newest(storage) if sweep is None else studies.named(sweep, storage)
    except UserError as error:
        if sweep is not None:
            raise
        print(f"no Optuna dashboard: {error}")
        return []
    if found is None:
        return []
    if importlib.util.find_spec("optuna_dashboard") is None:
        print(f"the study of sweep {found.folder.name} has a UI of its own: pip install 'rwkvctl[dashboard]'")
        return []
    print(f"Optuna dashboard: http://{host}:{port}/dashboard/studies/{found.number} (sweep {found.folder.name})")
    return [sys.executable, "-P", "-m", "rwkvctl.sweeps.dashboard", str(found.folder), host, str(port)]
