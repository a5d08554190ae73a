"""What a sweep has found, as pictures and as one page: Optuna's own plots, and the table of the trials."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from rwkvctl.base import html
from rwkvctl.base.files import write_bytes
from rwkvctl.config.specs.jobs import TuneSpec
from rwkvctl.sweeps.study import Study

PAGE = "sweep.html"
FEWEST = 2
"""Trials to the end without which there is nothing to draw."""
FEWEST_FOR_IMPORTANCE = 4
"""Trials to the end without which an estimate would be made up."""


def complete(study: Study) -> int:
    """How many trials were trained to the end, those of a warm start included."""
    return len(study.optuna.get_trials(states=(TrialState.COMPLETE,), deepcopy=False))


def importance(spec: TuneSpec, study: Study) -> dict[str, dict[str, float]]:
    """By objective: the share of each parameter in what differs between trials (Optuna's estimate); without those
    objectives for which there is none."""
    found: dict[str, dict[str, float]] = {}
    if complete(study) < FEWEST_FOR_IMPORTANCE:
        return found
    for index, goal in enumerate(spec.goals):
        with quiet():
            try:
                shares = optuna.importance.get_param_importances(study.optuna, target=value_of(index))
            except (ValueError, RuntimeError, ZeroDivisionError):  # too few trials, or none that differ
                continue
        found[goal.metric] = {path: round(share, 4) for path, share in shares.items()}
    return found


def write(spec: TuneSpec, study: Study, table: dict[str, Any], folder: Path) -> Path:
    """Draw all pictures into a folder, and the page beside them, which needs no other file; returns the page."""
    pictures = draw(spec, study, folder)
    page = folder / PAGE
    write_bytes(page, as_page(study.optuna.study_name, table, pictures).encode())
    return page


def draw(spec: TuneSpec, study: Study, folder: Path) -> dict[str, bytes]:
    """The pictures by name, as PNG; those that Optuna cannot draw of these trials are left out."""
    found: dict[str, bytes] = {}
    if complete(study) < FEWEST:
        return found
    for name, plot in plots(spec, study.optuna):
        if name.startswith("importance") and complete(study) < FEWEST_FOR_IMPORTANCE:
            continue
        with quiet():
            picture = as_png(plot)
        if picture is not None:
            found[name] = picture
            write_bytes(folder / f"{name}.png", picture)
    return found


def plots(spec: TuneSpec, study: optuna.Study) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every picture's name, and what draws it."""
    from optuna.visualization import matplotlib as drawn

    several = len(spec.goals) > 1
    if several and len(spec.goals) <= 3:
        yield "front", partial(drawn.plot_pareto_front, study, target_names=[goal.metric for goal in spec.goals])
    for index, goal in enumerate(spec.goals):
        own: dict[str, Any] = {"target": value_of(index), "target_name": goal.metric}
        end = f"-{goal.metric.replace('/', '-')}" if several else ""
        yield f"history{end}", partial(drawn.plot_optimization_history, study, **own)
        yield f"importance{end}", partial(drawn.plot_param_importances, study, **own)
        yield f"parallel{end}", partial(drawn.plot_parallel_coordinate, study, **own)
        yield f"slices{end}", partial(drawn.plot_slice, study, **own)
    if not several and spec.pruner != "none":
        yield "curves", partial(drawn.plot_intermediate_values, study)


def as_png(plot: Callable[[], Any]) -> bytes | None:
    """A picture; None where these trials do not give one."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    try:
        plot()
        buffer = io.BytesIO()
        figure = pyplot.gcf()
        figure.set_size_inches(max(8.0, figure.get_figwidth()), max(4.5, figure.get_figheight()))
        figure.savefig(buffer, dpi=110, bbox_inches="tight", format="png")
    except (ValueError, RuntimeError, TypeError, ZeroDivisionError, IndexError, KeyError):
        return None
    finally:
        pyplot.close("all")
    return buffer.getvalue()


def value_of(index: int) -> Callable[[FrozenTrial], float]:
    """One of a trial's objectives."""
    return lambda trial: trial.values[index]


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna calls all of its matplotlib plots experimental, and says what it leaves out of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def as_page(name: str, table: dict[str, Any], pictures: dict[str, bytes]) -> str:
    """One HTML page that needs nothing from elsewhere."""
    rows, others = table["trials"], table["others"]
    parts = [
        f"<h1>{html.escape(name)}</h1>",
        f"<p>{len(rows)} trials to the end, {len(others)} others</p>",
        rows_of(rows),
        *(f"<h2>{html.escape(title)}</h2>{html.picture(title, png)}" for title, png in pictures.items()),
    ]
    if others:
        parts += ["<h2>others</h2>", rows_of(others)]
    return html.page(name, parts)


def rows_of(rows: list[dict[str, Any]]) -> str:
    """An HTML table; a column for every key that any row has."""
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "front"))
    classes = ["front" if row.get("front") else "" for row in rows]
    return html.table(columns, ([row.get(column) for column in columns] for row in rows), classes=classes)
