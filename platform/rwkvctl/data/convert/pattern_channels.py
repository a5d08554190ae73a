"""Further channels of images that are paired by patterns: `--images 'rgb/*.png' --images 'depth/*.png'`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import discover
from rwkvctl.data.convert.discover import Problems, normal_id
from rwkvctl.data.convert.formats.channel_pairs import Settle
from rwkvctl.data.convert.formats.pairs import Pair
from rwkvctl.data.convert.name_patterns import NamePattern, parse
from rwkvctl.data.convert.pattern_pairs import Id
from rwkvctl.data.convert.sources import RawFile, Source
from rwkvctl.data.convert.voxel_files import is_volume
from rwkvctl.data.images.files import EXTENSIONS


def with_others(
    source: Source,
    root: str,
    texts: Sequence[str],
    pairs: Mapping[Id, Pair],
    problems: Problems,
    volumes: bool = False,
) -> dict[Id, Pair]:
    """The pairs with the file that each further pattern has for their image.

    texts: all patterns of `--images`, of which the first found the images. An image without a file of another is a
    problem, and so is a second one.
    """
    first, *more = (parse("--images", text) for text in texts)
    own = {pair.image.path for pair in pairs.values()}
    found = dict(pairs)
    for pattern in more:
        files = _by_id(source, root, first, pattern, own, problems, volumes)
        for name, pair in pairs.items():
            ids = _ids(first, discover.relative(pair.image, root), first, pattern)
            file = next((files[each] for each in ids if each in files), None)
            if file is not None:
                found[name] = replace(found[name], others=(*found[name].others, file))
                continue
            problems.leave_out(pair.image, f"has no image by --images {pattern.text}; add it, or leave the image out")
            found.pop(name, None)
    return {name: pair for name, pair in found.items() if len(pair.others) == len(more)}


def _by_id(
    source: Source,
    root: str,
    first: NamePattern,
    pattern: NamePattern,
    own: set[str],
    problems: Problems,
    volumes: bool,
) -> dict[Id, RawFile]:
    found: dict[Id, RawFile] = {}
    matched = 0
    for file in source.files:
        taken = is_volume(file) if volumes else file.suffix in EXTENSIONS
        ids = _ids(pattern, discover.relative(file, root), first, pattern) if taken else ()
        for name in ids:
            if file.path in own:
                raise UserError(f"--images {pattern.text!r}: matches {file.path}, as the first does; tell them apart")
            if found.setdefault(name, file) is not file:
                problems.add(f"{file}: has the same id as {found[name].name} by --images; keep one, or rename one")
            matched += 1
    if not matched:
        raise UserError(f"--images {pattern.text!r}: matches no image in {source}; give it in quotes")
    return found


def _ids(own: NamePattern, path: str, first: NamePattern, other: NamePattern) -> Iterable[Id]:
    """What a path has for the wildcards that both patterns have: those of a name, and the others in their order."""
    if first.names.count("") != other.names.count(""):
        raise UserError(
            f"--images {other.text!r}: has {other.names.count('')} wildcards without a name, the first has "
            f"{first.names.count('')}; what must agree needs one in both, what need not, a name in one of them"
        )
    shared = [name for name in first.names if name and name in other.names]
    found = []
    for way in own.ways(path):
        unnamed = [value for name, value in zip(own.names, way, strict=True) if not name]
        named = [way[own.names.index(name)] for name in shared]
        found.append(tuple("/".join(map(normal_id, value.split("/"))) for value in (*named, *unnamed)))
    return dict.fromkeys(found)


def settle(texts: Sequence[str]) -> Settle:
    """What is gone through before conversion, see `channel_pairs`: channels are called after their patterns."""
    return Settle(channel_names(texts))


def channel_names(texts: Sequence[str]) -> tuple[str, ...]:
    """What is plain in each pattern and not in all: `t1` and `flair` of `*/p*_t1` and `*/p*_flair`, `depth_d` of
    `depth/*_d.png`."""
    words = [_words(text) for text in texts]
    shared = set.intersection(*map(set, words)) if len(words) > 1 else set()
    own = [[word for word in each if word not in shared] or list(each) for each in words]
    return tuple(
        discover.slug(" ".join(each)) or discover.slug(text) or "image" for each, text in zip(own, texts, strict=True)
    )


def _words(text: str) -> list[str]:
    plain = str(PurePosixPath(text.removesuffix(".gz")).with_suffix(""))
    return re.findall(r"[^\W_]+", plain)
