"""Several masks of one image, told apart by wildcards that `--masks` alone has: annotators, of whom one is taken, a
file a class, or single objects, which are joined."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import discover, part_folders
from rwkvctl.data.convert.discover import Problems
from rwkvctl.data.convert.formats.base import Options
from rwkvctl.data.convert.pattern_pairs import Matched
from rwkvctl.data.convert.sources import natural_key

ANNOTATOR, CLASS = "annotator", "class"
"""Names of wildcards that say what they are."""
_SHOWN = 6


def take_annotator(found: Matched, wanted: str, problems: Problems) -> None:
    """Of each image the masks of one annotator alone."""
    known = {name: _values_of(found, name) for name in _wildcards(found)}
    if ANNOTATOR in known:
        known = {ANNOTATOR: known[ANNOTATOR]}
    name = next((name for name, values in known.items() if same(wanted) in map(same, values)), None)
    if name is None:
        there = "; ".join(_listed(values) for values in known.values())
        raise UserError(
            f"--annotator {wanted}: is in no name of a mask; "
            + (f"there is {there}" if there else "give --masks a wildcard for it, as 'masks/*_{annotator}.png'")
        )
    for key, own in list(found.masks.items()):
        found.masks[key] = [one for one in own if same(one.values[name]) == same(wanted)]
        for one in found.masks[key]:
            del one.values[name]
        if not found.masks[key]:
            problems.leave_out(
                found.images[key].file, f"has no mask of annotator {wanted}; add it, or leave --annotator"
            )
            del found.masks[key], found.images[key]


def refuse_other_parts(found: Matched) -> None:
    """`train/masks/1.png` and `test/masks/1.png` are no two masks of one image."""
    if not any(len(own) > 1 for own in found.masks.values()):
        return
    for name in _wildcards(found):
        values = _values_of(found, name)
        if len(values) > 1 and all(map(part_folders.part_of, values)):
            raise UserError(
                f"--masks: masks of one image are in {_listed(values)}; give --images a wildcard for that part too"
            )


def class_words(options: Options, classes: Sequence[str]) -> dict[str, int]:
    """Class ids by the words that masks of one class are called by: the table's, or the names of the classes."""
    if options.class_table and options.class_table.words:
        return {same(word): own for word, own in options.class_table.words}
    return {same(name): number for number, name in enumerate(classes)}


def class_wildcard(found: Matched, class_of: Mapping[str, int], options: Options) -> str | None:
    """The wildcard that names a class, so that each mask is of one; None when the pixels say the class."""
    names, classes, table = _wildcards(found), options.classes, options.class_table
    known = class_of.keys() if classes else frozenset[str]()
    for name in [CLASS] if CLASS in names else names:
        values = _values_of(found, name)
        missing = [value for value in values if same(value) not in known]
        if not missing:
            return name
        if name == CLASS or len(missing) < len(values):
            raise UserError(
                f"--classes: has no {_listed(missing)}, of which there are masks; name them all, the background first"
            )
    if table and not table.values and not table.colours:
        values = [value for name in names for value in _values_of(found, name)]
        raise UserError(
            f"--classes: no mask is called {_listed([word for word, _ in table.words])} by --masks {options.masks}; "
            + (f"there is {_listed(values)}" if values else "give --masks a wildcard for it, as 'masks/*_{class}.png'")
        )
    if classes and len(classes) > 2 and any(len(own) > 1 for own in found.masks.values()):
        values = _values_of(found, names[0]) if names else []
        raise UserError(
            f"--masks: images have several masks ({_listed(values)}), none called like one of --classes "
            f"{','.join(classes)}; name the classes as the masks are called, or take one mask with --annotator"
        )
    return None


def _wildcards(found: Matched) -> list[str]:
    """Those that tell masks of one image apart."""
    return list(dict.fromkeys(name for own in found.masks.values() for one in own for name in one.values))


def _values_of(found: Matched, name: str) -> list[str]:
    values = {one.values[name]: None for own in found.masks.values() for one in own}
    return sorted(values, key=natural_key)


def same(text: str) -> str:
    """What two words have in common that mean one annotator or class."""
    return discover.slug(text)


def _listed(values: Sequence[str]) -> str:
    return ", ".join(value or "''" for value in values[:_SHOWN]) + (", ..." if len(values) > _SHOWN else "")


def note(found: Matched, by_class: str | None) -> list[str]:
    """What becomes of several masks of an image."""
    counts = Counter(len(own) for own in found.masks.values())
    if by_class is not None:
        files = ", ".join(f"{n} images have {count}" for count, n in sorted(counts.items()))
        return [f"one mask a class ({_listed(_values_of(found, by_class))}): {files}"]
    several = sum(n for count, n in counts.items() if count > 1)
    if not several:
        return []
    known = [values for name in _wildcards(found) if len(values := _values_of(found, name)) <= _SHOWN]
    told = f"; {' or '.join(map(_listed, known))} alone with --annotator" if known else ""
    return [f"{several} images have several masks: their union is taken{told}"]
