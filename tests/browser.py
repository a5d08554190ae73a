"""Chromium without a window, driven over a pipe by its own protocol: pages are clicked through as a person does."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 120.0
DOMAINS = ("Page", "Runtime", "Network", "Log")


class Browser:
    """One page."""

    def __init__(self, out: int, into: int):
        self.out, self.into, self.number, self.buffer = out, into, 0, b""
        self.session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.events.clear()
        for domain in DOMAINS:
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while (answer := self.message()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def message(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.into], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            found = os.read(self.into, 1 << 20)
            assert found, "the browser has ended"
            self.buffer += found
        first, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(first)

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def value(self, expression: str) -> Any:
        """What an expression of JavaScript gives in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, expression: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not self.value(expression):
            assert time.monotonic() < deadline, expression
            time.sleep(0.05)

    def place(self, selector: str) -> tuple[float, float]:
        """The middle of an element, scrolled into view."""
        element = f"document.querySelector({json.dumps(selector)})"
        found = self.value(
            f"(e => {{ e.scrollIntoView({{block: 'center'}}); const r = e.getBoundingClientRect();"
            f" return [r.x + r.width / 2, r.y + r.height / 2] }})({element})"
        )
        return found[0], found[1]

    def click(self, selector: str) -> None:
        x, y = self.place(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def wheel(self, selector: str, pixels: int) -> None:
        x, y = self.place(selector)
        self.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=pixels)

    def key(self, name: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name)

    def write(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def complaints(self) -> list[dict[str, Any]]:
        """Errors of scripts, and what the page's own rules forbid."""
        self.value("1")
        return [
            event
            for event in self.events
            if event["method"] == "Runtime.exceptionThrown"
            or (event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error")
        ]

    def requests(self) -> list[str]:
        """Addresses that were asked for; those of data within the page left out."""
        sent = [event["params"] for event in self.events if event["method"] == "Network.requestWillBeSent"]
        addresses = [each["request"]["url"] for each in sent]
        return [address for address in addresses if not address.startswith("data:")]

    def enter_frame(self) -> None:
        """Go on in the frame within the page that is of another origin, as sandboxed ones are."""
        self.call("Target.setAutoAttach", autoAttach=True, waitForDebuggerOnStart=False, flatten=True)
        deadline = time.monotonic() + PATIENCE
        while not (found := [event for event in self.events if event["method"] == "Target.attachedToTarget"]):
            assert time.monotonic() < deadline
            self.value("1")
            time.sleep(0.05)
        self.session = found[-1]["params"]["sessionId"]
        for domain in DOMAINS:
            self.call(f"{domain}.enable")
        self.until("document.readyState === 'complete' && document.body !== null")


@contextmanager
def opened(profile: Path) -> Iterator[Browser]:
    """A browser with a profile of its own; the test is skipped where there is none."""
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    if binary is None:
        pytest.skip("no Chromium here")
    (to_read, out), (into, to_write) = os.pipe(), os.pipe()

    def as_three_and_four() -> None:  # where the browser looks for its pipe
        read, write = os.dup(to_read), os.dup(to_write)
        os.dup2(read, 3)
        os.dup2(write, 4)

    words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        [binary, *words, "--window-size=1200,900"],
        preexec_fn=as_three_and_four,
        close_fds=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(to_write)
    try:
        yield Browser(out, into)
    finally:
        process.terminate()
        process.wait()
        os.close(out)
        os.close(into)
