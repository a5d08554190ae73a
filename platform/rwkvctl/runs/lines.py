"""A run's journal as lines of text: what a person sees of a job, here or elsewhere, now or later."""

from __future__ import annotations

from typing import Any

LINES_EVERY = 5.0
"""Seconds between two lines about steps; validations and messages are always told."""


class PlainView:
    """One line for a validation or a message, and one every few seconds, by the journal's clock, for the steps."""

    def __init__(self) -> None:
        self.total = self.per_epoch = 0
        self.printed = 0.0

    def show(self, entry: dict[str, Any]) -> None:
        match entry:
            case {"kind": "event", "event": "plan"}:
                self.per_epoch = entry["steps_per_epoch"]
                self.total = entry["epochs"] * self.per_epoch
            case {"kind": "event", "event": "message"}:
                self.line(entry["text"])
            case {"kind": "event", "event": "validation"}:
                self.line(describe_validation(entry))
            case {"kind": "metrics", "values": {"train/loss": _}}:
                self.step(entry["step"], entry["values"], entry["t"] / 1000)

    def step(self, step: int, values: dict[str, float], now: float) -> None:
        if now - self.printed >= LINES_EVERY or step == self.total:
            self.printed = now
            self.line(describe_step(step, self.total, values))

    def line(self, text: str) -> None:
        print(text, flush=True)

    def close(self) -> None:
        pass


def describe_step(step: int, total: int, values: dict[str, float]) -> str:
    """One log line: step, loss, rate, gradient norm, throughput, where the time goes, memory, time left."""
    speed = values["train/images_per_second"]
    parts = [
        f"step {step}/{total}",
        f"loss {values['train/loss']:.4f}",
        f"lr {values['train/lr']:.2e}",
        f"grad {values['train/grad_norm']:.3f}" if "train/grad_norm" in values else "no update",
        f"{speed:.1f} img/s",
    ]
    if "train/mfu" in values:
        parts.append(f"mfu {values['train/mfu']:.1%}")
    if "train/data_wait" in values:
        parts.append(f"data wait {values['train/data_wait']:.0%}")
    if "train/peak_memory_bytes" in values:
        parts.append(f"mem {values['train/peak_memory_bytes'] / 2**30:.1f} GiB")
    if "train/seconds_per_step" in values:
        parts.append(f"eta {duration((total - step) * values['train/seconds_per_step'])}")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """`2d 03:10`, `3:05:10` or `5:10`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, of_day = divmod(hours, 24)
    if days:
        return f"{days}d {of_day:02}:{minutes:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def describe_validation(entry: dict[str, Any]) -> str:
    """One line for a validation: the epoch and its scores."""
    scores = {key: value for key, value in entry.items() if isinstance(value, float)}
    return f"epoch {entry['epoch']}  " + "  ".join(f"{key} {value:.4f}" for key, value in scores.items())
