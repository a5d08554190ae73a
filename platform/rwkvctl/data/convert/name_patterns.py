"""Patterns of file names, `Bilder/**/*_{n}.tif`: what their wildcards match tells which files belong together.

    *        anything within a folder's or file's name          **/   any folders, or none
    ?, [LR]  one sign                                           {id}  as *, with a name
    {a,b}    one of these words; behind the last dot (`*.{png,tif}`) it tells no files apart

Case and Unicode's two spellings do not count. A pattern whose last part has no dot takes images of any ending.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import voxel_files
from rwkvctl.data.images.files import EXTENSIONS

_TOKENS = re.compile(r"\*\*/|\*+|\?|\[[^\]/]+\]|\{[^{}/]*\}|[^*?\[{]+|.")
_KNOWN = sorted([*EXTENSIONS, *voxel_files.ENDINGS, ".dcm"], key=len, reverse=True)
_ENDINGS = "|".join(re.escape(own.removeprefix(".")) for own in _KNOWN)
_MOST_WAYS = 256
"""In which one path may match a pattern; more are not tried."""


@dataclass(frozen=True)
class Wildcard:
    """name: what it is called, "" for those that are told by their order."""

    name: str
    pattern: re.Pattern[str]


@dataclass(frozen=True)
class NamePattern:
    """A pattern as the user gave it with `option`, in parts: expressions for plain text, and wildcards."""

    option: str
    text: str
    parts: tuple[Wildcard | re.Pattern[str], ...]
    whole: re.Pattern[str]

    @property
    def names(self) -> list[str]:
        """Of its wildcards, in order, "" for those without a name."""
        return [part.name for part in self.parts if isinstance(part, Wildcard)]

    @property
    def plain(self) -> int:
        """How much of it is no wildcard."""
        return sum(len(token) for token in _TOKENS.findall(self.text) if token[0] not in "*?[{")

    def ends(self, path: str) -> bool:
        """Whether a path, or the end of it from some folder on, is such a name."""
        parts = unicodedata.normalize("NFC", path).split("/")
        return any(self.whole.fullmatch("/".join(parts[n:])) for n in range(len(parts)))

    def ways(self, path: str) -> list[tuple[str, ...]]:
        """What the wildcards may be in `path`, one value each, the longest for the first ones first; [] for another
        path."""
        path = unicodedata.normalize("NFC", path)
        if not self.whole.fullmatch(path):
            return []
        return [way for way in itertools.islice(self._ways(path, 0, 0), _MOST_WAYS) if self._agrees(way)]

    def _agrees(self, way: tuple[str, ...]) -> bool:
        """Whether a name that stands twice is the same twice."""
        of: dict[str, str] = {}
        return all(of.setdefault(name, value) == value for name, value in zip(self.names, way, strict=True) if name)

    def _ways(self, path: str, start: int, number: int) -> Iterator[tuple[str, ...]]:
        if number == len(self.parts):
            if start == len(path):
                yield ()
            return
        part = self.parts[number]
        if isinstance(part, re.Pattern):
            if match := part.match(path, start):
                yield from self._ways(path, match.end(), number + 1)
            return
        for end in range(len(path), start - 1, -1):
            if part.pattern.fullmatch(path, start, end):
                for others in self._ways(path, end, number + 1):
                    yield path[start:end].strip("/"), *others


def parse(option: str, text: str) -> NamePattern:
    """The pattern `text`; UserError when it has no wildcard, or an open bracket."""
    plain = unicodedata.normalize("NFC", text.strip()).removeprefix("./")
    if plain.endswith("**"):
        plain += "/*"
    folder, slash, last = plain.rpartition("/")
    stem, dot, ending = last.rpartition(".")
    if not dot:
        stem, ending = last, "*"
    parts: list[Wildcard | re.Pattern[str]] = []
    for token in _TOKENS.findall(folder + slash + stem):
        parts.append(_part(option, text, token))
    if not any(isinstance(part, Wildcard) for part in parts):
        raise UserError(f"{option} {text!r}: has no * for what differs from file to file; example: '{folder}/*.png'")
    parts.append(re.compile(r"\." + _ending(option, text, ending), re.IGNORECASE))
    whole = "".join(f"(?:{(part.pattern if isinstance(part, Wildcard) else part).pattern})" for part in parts)
    return NamePattern(option, text, tuple(parts), re.compile(whole, re.IGNORECASE))


def _part(option: str, text: str, token: str) -> Wildcard | re.Pattern[str]:
    if token.startswith("**/"):
        return _wildcard("", r"(?:[^/]+/)*")
    if token.startswith("*"):
        return _wildcard("", r"[^/]*")
    if token == "?":
        return _wildcard("", r"[^/]")
    if token.startswith("[") and len(token) > 1:
        return _wildcard("", "[" + re.sub(r"([\\[&~|])", r"\\\1", re.sub(r"^!", "^", token[1:-1])) + "]")
    if token.startswith("{") and len(token) > 1:
        name = token[1:-1].strip()
        if "," in name:
            return _wildcard(name, "|".join(re.escape(word.strip()) for word in name.split(",")))
        if not name:
            raise UserError(f"{option} {text!r}: {{}} has no name; write *, or for example {{id}}")
        return _wildcard(name, r"[^/]*")
    if token in "[{":
        raise UserError(f"{option} {text!r}: {token} is not closed; close it, or write ? for that sign")
    return re.compile(re.escape(token), re.IGNORECASE)


def _wildcard(name: str, pattern: str) -> Wildcard:
    return Wildcard(name, re.compile(pattern, re.IGNORECASE))


def _ending(option: str, text: str, ending: str) -> str:
    """The expression for what follows the last dot, which tells no files apart."""
    words: list[str] = []
    for token in _TOKENS.findall(ending):
        if token.startswith("{") and token.endswith("}"):
            words.append("(?:" + "|".join(re.escape(word.strip()) for word in token[1:-1].split(",")) + ")")
        elif token == "*" and ending == "*":
            words.append(f"(?:{_ENDINGS})")
        else:
            words.append(_expression(_part(option, text, token)))
    return "".join(words)


def _expression(part: Wildcard | re.Pattern[str]) -> str:
    return (part.pattern if isinstance(part, Wildcard) else part).pattern
