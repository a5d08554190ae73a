"""How scores are distributed, as SVG within a page: a box for each class, a histogram of the cases; what confidence is
worth, and what the predicted DSC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rwkvctl.base.html import escape
from rwkvctl.pictures.palette import palette

LEFT, WIDTH, ROW = 150, 560, 30
MOST_POINTS = 500
"""Cases drawn as points beside a box; of more, so many evenly spread over their ranks."""
BINS = 20


def boxes(values: Mapping[int, Sequence[tuple[str, float]]], classes: Sequence[str]) -> str:
    """A row for each class id: quartiles as a box, whiskers to least and greatest, and a point for each case.

    values: (case, DSC in [0, 1]) of each class.
    """
    rows = [
        row_of(number, class_id, classes[class_id], found) for number, (class_id, found) in enumerate(values.items())
    ]
    height = ROW * len(rows) + 24
    return svg(height, "DSC of every case by class", axis(height) + "".join(rows))


def row_of(number: int, class_id: int, name: str, found: Sequence[tuple[str, float]]) -> str:
    middle = number * ROW + ROW / 2
    colour = f"rgb({','.join(map(str, palette()[class_id].tolist()))})"
    label = f'<text x="{LEFT - 8}" y="{middle + 4}" text-anchor="end">{escape(shortened(name))}</text>'
    if not found:
        return label
    ranked = sorted(found, key=lambda item: item[1])
    least, first, median, third, most = np.percentile([value for _, value in ranked], [0, 25, 50, 75, 100])
    said = f"{name}: {len(ranked)} cases, quartiles {first:.3f}, {median:.3f}, {third:.3f}; {least:.3f} to {most:.3f}"
    box = (
        f'<line x1="{x(least)}" x2="{x(most)}" y1="{middle}" y2="{middle}" stroke="#555"/>'
        f'<rect x="{x(first)}" y="{middle - 8}" width="{max(1, x(third) - x(first)):.1f}" height="16" fill="{colour}" '
        f'fill-opacity=".55" stroke="#555"><title>{escape(said)}</title></rect>'
        f'<line x1="{x(median)}" x2="{x(median)}" y1="{middle - 8}" y2="{middle + 8}" stroke="#000" stroke-width="2"/>'
    )
    kept = [ranked[i] for i in np.unique(np.linspace(0, len(ranked) - 1, min(len(ranked), MOST_POINTS)).astype(int))]
    points = "".join(
        f'<circle cx="{x(value)}" cy="{middle + (i * 7) % 17 - 8}" r="2" fill="#000" fill-opacity=".35">'
        f"<title>{escape(key)}: {value:.4f}</title></circle>"
        for i, (key, value) in enumerate(kept)
    )
    return label + box + points


def histogram(values: Sequence[float]) -> str:
    """How many cases have which DSC, in 20 bins from 0 to 1."""
    counts, edges = np.histogram(values, bins=BINS, range=(0.0, 1.0))
    tall, height = 110, 150
    bars = "".join(
        f'<rect x="{x(low) + 1}" y="{height - 24 - count / max(1, counts.max()) * tall:.1f}" '
        f'width="{x(high) - x(low) - 2:.1f}" height="{count / max(1, counts.max()) * tall:.1f}" fill="#4a7ab5">'
        f"<title>{low:.2f} to {high:.2f}: {count} cases</title></rect>"
        for count, low, high in zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    )
    label = f'<text x="{LEFT - 8}" y="{height - 24 - tall + 10}" text-anchor="end">{counts.max()} cases</text>'
    return svg(height, "Cases by their mean DSC", axis(height) + label + bars)


SQUARE = 260


def reliability(raw: Mapping[str, Sequence[float | None]], calibrated: Mapping[str, Sequence[float | None]]) -> str:
    """Share of pixels that is right against their mean confidence, of each bin, before and after the temperature."""
    series = [(raw, "#999", "temperature 1"), (calibrated, "#4a7ab5", "the model's temperature")]
    if raw == calibrated:
        series = series[:1]
    parts = [square("confidence", "share that is right")]
    for number, (found, colour, name) in enumerate(series):
        points = [
            (confidence, right, pixels)
            for confidence, right, pixels in zip(found["confidence"], found["right"], found["pixels"], strict=True)
            if confidence is not None and right is not None
        ]
        line = " ".join(f"{sx(confidence)},{sy(right)}" for confidence, right, _ in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{sx(confidence)}" cy="{sy(right)}" r="4" fill="{colour}"><title>{pixels:,} pixels: '
            f"confidence {confidence:.3f}, right {right:.3f}</title></circle>"
            for confidence, right, pixels in points
        ]
        parts.append(f'<text x="{sx(0) + 8}" y="{20 + 16 * number}" fill="{colour}">{name}</text>')
    return svg(SQUARE + 40, "Reliability: share that is right by confidence", "".join(parts), SQUARE + 60)


def scatter(points: Sequence[tuple[str, float, float]]) -> str:
    """A point for each case: (name, predicted DSC, true DSC); of many, every second, third, ..."""
    kept = points[:: max(1, -(-len(points) // (4 * MOST_POINTS)))]
    drawn = "".join(
        f'<circle cx="{sx(predicted)}" cy="{sy(true)}" r="3" fill="#4a7ab5" fill-opacity=".6"><title>{escape(key)}: '
        f"predicted {predicted:.3f}, true {true:.3f}</title></circle>"
        for key, predicted, true in kept
    )
    return svg(SQUARE + 40, "True DSC by predicted DSC", square("predicted DSC", "true DSC") + drawn, SQUARE + 60)


def square(across: str, up: str) -> str:
    """Axes from 0 to 1, and the diagonal."""
    ticks = [tick / 5 for tick in range(6)]
    lines = "".join(
        f'<line x1="{sx(t)}" x2="{sx(t)}" y1="{sy(0)}" y2="{sy(1)}" stroke="#eee"/>'
        f'<line x1="{sx(0)}" x2="{sx(1)}" y1="{sy(t)}" y2="{sy(t)}" stroke="#eee"/>'
        f'<text x="{sx(t)}" y="{SQUARE + 18}" text-anchor="middle">{t:.1f}</text>'
        f'<text x="{sx(0) - 6}" y="{sy(t) + 4}" text-anchor="end">{t:.1f}</text>'
        for t in ticks
    )
    return (
        f'{lines}<line x1="{sx(0)}" y1="{sy(0)}" x2="{sx(1)}" y2="{sy(1)}" stroke="#bbb" stroke-dasharray="4"/>'
        f'<text x="{sx(0.5)}" y="{SQUARE + 36}" text-anchor="middle">{across}</text>'
        f'<text transform="translate(12 {sy(0.5)}) rotate(-90)" text-anchor="middle">{up}</text>'
    )


def sx(value: float) -> float:
    return round(48 + float(value) * SQUARE, 1)


def sy(value: float) -> float:
    return round(10 + (1 - float(value)) * (SQUARE - 10), 1)


def axis(height: float) -> str:
    ticks = [tick / 5 for tick in range(6)]
    lines = "".join(f'<line x1="{x(t)}" x2="{x(t)}" y1="0" y2="{height - 20}" stroke="#ddd"/>' for t in ticks)
    return lines + "".join(f'<text x="{x(t)}" y="{height - 6}" text-anchor="middle">{t:.1f}</text>' for t in ticks)


def x(value: float) -> float:
    return round(LEFT + float(value) * WIDTH, 1)


def shortened(name: str) -> str:
    return name if len(name) <= 22 else f"{name[:21]}…"


def svg(height: float, title: str, inside: str, width: float = LEFT + WIDTH + 20) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'aria-label="{escape(title)}" font-size="12">{inside}</svg>'
    )
