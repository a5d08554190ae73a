"""Which data set a download is, in which form, and what is missing or wrong: by names and headers, in seconds."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rwkvctl.base.errors import BadFile, UserError
from rwkvctl.data.convert import class_table, discover, formats, pair_tables, part_lists
from rwkvctl.data.convert.choices import options_of
from rwkvctl.data.convert.discover import EXAMPLES, Problems
from rwkvctl.data.convert.formats.base import Item, Options, Plan
from rwkvctl.data.convert.formats.pairs import Pair
from rwkvctl.data.convert.formats.photos import Photo
from rwkvctl.data.convert.formats.scan_pairs import ScanCase
from rwkvctl.data.convert.sources import Source, natural_key, open_sources
from rwkvctl.data.convert.suggestion import Suggestion
from rwkvctl.data.guess import mask_classes, mask_survey, picture_patterns, volume_patterns
from rwkvctl.data.images import deep
from rwkvctl.data.images.files import EXTENSIONS

_MOST_TABLES = 3
CLASSES = "classes"
"""The form of what is folders of images and nothing else: nearly every layout is that, too."""
DESCRIBED = ("nnunet", "decathlon")
"""Formats whose folder says itself which file is what, so that its faults are told and nothing is guessed."""
_LEAST_OF_IMAGES = 0.2
"""Images with their masks are half of all."""
APART = 0.3
"""Masks of one image that share less of their area are of different things."""
ALIKE = 0.5
"""Those that share more are of one thing, by two people."""


@dataclass
class Finding:
    """A data set that a source may be. `problems` are what `prepare` would refuse.

    Of one's own images a few masks are opened: `masks` is what they hold. options: what `prepare` must be told;
    examples: three pairs; question: what is left open, with the option that decides.
    """

    dataset: str
    form: str
    samples: int = 0
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    masks: str = ""
    options: str = ""
    examples: list[str] = field(default_factory=list)
    question: str = ""
    overlap: float | None = None


@dataclass
class Diagnosis:
    """What was found, the likeliest first, and how many files of which kind there are."""

    findings: list[Finding]
    extensions: dict[str, int]


def examine(paths: Sequence[Path | str]) -> Diagnosis:
    """Ask every format whether it knows the source, and plan its preparation without reading the samples."""
    with open_sources(paths) as source:
        findings = [finding for form in formats.every() if (finding := _ask(form, source))]
        classes = [finding for finding in findings if finding.form == CLASSES]
        labelled = [finding for finding in findings if finding.dataset == "imagetable"]
        findings = [finding for finding in findings if finding not in [*classes, *labelled]]
        kinds = Counter(file.suffix or "no extension" for file in source.files)
        images = sum(file.suffix in EXTENSIONS for file in source.files)
        if not any(_is_sure(finding, images) for finding in findings):
            findings = (_own_pairs(source, findings) or findings or ([] if labelled else classes)) + labelled
    # A generic format takes nearly everything; a special one without problems is the surest.
    generic = {form.DATASET.name for form in formats.every() if not form.DATASET.expected}
    special = [finding for finding in findings if finding.dataset not in generic]
    if len(special) > 1 or any(not finding.problems for finding in special):
        findings = special  # what a generic format would take is theirs
    findings.sort(key=lambda own: (not own.samples and bool(own.problems), own.dataset in generic, len(own.problems)))
    return Diagnosis(findings, dict(kinds.most_common(8)))


def _is_sure(finding: Finding, images: int) -> bool:
    """Whether a finding leaves no room for a guess: folders with names that say little may be pairs as well, and so may
    be those of which a few images are called as those of a known data set."""
    if finding.dataset == "imagefolder":
        return False
    if finding.problems and (finding.dataset == "folder" or finding.samples < _LEAST_OF_IMAGES * images):
        return False
    return finding.samples > 0


def _own_pairs(source: Source, others: Sequence[Finding]) -> list[Finding]:
    """Images and masks of one's own, by a table or by their names, where that says more than the other findings."""
    folders = [other for other in others if other.dataset == "folder"]
    described = any(other.dataset in DESCRIBED for other in others)
    found = _of_tables(source, folders) or ([] if described else _volumes(source)) or _guessed(source)
    found = [own for own in found if all(_is_better(own, other) for other in folders)]
    unsure = any(own.masks.startswith(mask_classes.PICTURES) for own in found)
    return [] if unsure and len(others) > len(folders) else found


def _of_tables(source: Source, others: Sequence[Finding]) -> list[Finding]:
    """Images of which a table in the source says which mask they have, or what they are for."""
    form = formats.get("pairs")
    for seen in pair_tables.seen_in(source)[:_MOST_TABLES]:
        place = seen.file.data if seen.file.kind == "file" else seen.file.path
        options = Options(form.DATASET.name, csv=place)
        told = [f"--csv {shlex.quote(place)}"]
        if seen.columns.mask is None:
            if (found := picture_patterns.guess(source)) is None:
                continue
            options = replace(options, images=found.images, masks=found.masks)
            told += [f"--images {shlex.quote(found.images)}", f"--masks {shlex.quote(found.masks)}"]
        own = _planned(form, "table", source, options)
        if own.samples and own.samples >= max((other.samples for other in others), default=0):
            own.options = " ".join(filter(None, [*told, own.options]))
            return [own]
    return []


def _is_better(own: Finding, other: Finding) -> bool:
    return own.samples > other.samples or len(own.problems) < len(other.problems)


def _guessed(source: Source) -> list[Finding]:
    """Images and masks of no known data set, by the patterns of the format `pairs`."""
    found = picture_patterns.guess(source)
    if found is None:
        return []
    form = formats.get("pairs")
    options = Options(form.DATASET.name, images=found.images, masks=found.masks, split_from=found.split_from)
    own = _planned(form, "patterns", source, options)
    if found.split_from is None and part_lists.are_there(source):
        listed = replace(options, split_from=part_lists.LISTS)
        by_lists = _planned(form, "patterns", source, listed)
        if by_lists.samples * 2 >= own.samples and by_lists.samples and not by_lists.problems:
            options, own = listed, by_lists
    chosen = {"images": found.images, "masks": found.masks, "split-from": options.split_from}
    told = [f"--{name} {shlex.quote(value)}" for name, value in chosen.items() if value]
    if found.words and own.options:
        own = _of_one(found.words, form, source, options) or own
    elif found.words:
        own = _of_several(found.words, own, form, source, options)
    own.options = " ".join(filter(None, [*told, own.options]))
    own.question = "; ".join(filter(None, [found.question, own.question]))
    return [own]


def _of_one(words: Sequence[str], form: formats.Format, source: Source, options: Options) -> Finding | None:
    """Of several masks an image that hold several classes, one: they cannot be joined. Values rather than colours."""
    tried = []
    for word in words:
        own = _planned(form, "patterns", source, replace(options, annotator=word))
        own.options = " ".join(filter(None, [f"--annotator {shlex.quote(word)}", own.options]))
        others = ", ".join(other for other in words if other != word)
        asked = f"each image has several masks; of these {word} is taken, --annotator takes another one: {others}"
        own.question = "; ".join(filter(None, [asked, own.question]))
        tried.append(own)
    return min(tried, key=lambda own: (len(own.problems), "colours" in own.masks), default=None)


def _of_several(words: Sequence[str], own: Finding, form: formats.Format, source: Source, options: Options) -> Finding:
    """What becomes of several masks of two classes an image: those that lie apart are of a class each, those that cover
    each other of one thing, by several people, and the others are joined."""
    classes = mask_classes.option(",".join(["background", *words]))
    first = min(words, key=natural_key)
    annotator = f"--annotator {shlex.quote(first)}"
    overlap = ALIKE if own.overlap is None else own.overlap
    if overlap < APART and not any(word.isdigit() for word in words):
        made = _planned(form, "patterns", source, replace(options, classes=("background", *words)))
        made.options = classes
        asked = f"each mask is of a class; are they to be joined, leave out --classes; is one wanted, {annotator}"
    elif overlap > ALIKE:
        made = _planned(form, "patterns", source, replace(options, annotator=first))
        made.options = f"{annotator} {made.options}".rstrip()
        asked = (
            f"masks of one thing are by several ({', '.join(words)}), --annotator says whose are taken; are they to be "
            f"joined, leave it out; is each of a class, {classes} instead"
        )
    else:
        made = own
        asked = f"several masks an image are joined; is one wanted, add {annotator}; is each of a class, {classes}"
    made.question = "; ".join(filter(None, [asked, made.question]))
    return made


def _volumes(source: Source) -> list[Finding]:
    """Volumes and masks of no known data set, by the patterns of the format `pairs`."""
    found = volume_patterns.suggest(source)
    return [] if found is None else [_with(found, formats.get("pairs"), "volumes", source)]


def _with(found: Suggestion, form: formats.Format, name: str, source: Source) -> Finding:
    """What a plan tells that is made with what is suggested."""
    given: dict[str, Any] = dict(found.choices)
    for option, read in (("classes", class_table.parse), ("range", deep.parse_range)):
        if option in given:
            given[option] = read(given[option])
    own = _planned(form, name, source, options_of(form.DATASET, form.DATASET.name, **given))
    own.options = found.options if "classes" in given else " ".join(filter(None, [found.options, own.options]))
    own.question = "; ".join(filter(None, [found.question, own.question]))
    return own


def _ask(form: formats.Format, source: Source) -> Finding | None:
    name = form.recognise(source)
    if name is None:
        return None
    suggest = getattr(form, "suggest", None)
    found = suggest(source) if suggest else None
    if found is not None:
        return _with(found, form, name, source)
    return _planned(form, name, source, Options(dataset=form.DATASET.name))


def _planned(form: formats.Format, name: str, source: Source, options: Options) -> Finding:
    """What a plan of the preparation tells, and a few masks where a format leaves their meaning open."""
    finding = Finding(form.DATASET.name, name)
    problems = Problems(str(source))
    try:
        plan = form.plan(source, options, problems)
    except (UserError, BadFile) as error:
        finding.problems = [*problems.found, str(error)]
        return finding
    finding.samples = sum(len(items) for items in plan.parts.values())
    finding.samples += sum(len(items) for shards in plan.adopted.values() for _, items in shards)
    finding.warnings = plan.warnings
    if plan.image_kind == "float":
        finding.examples = _cases(plan)
    elif plan.task == "classification":
        photos = [item for items in plan.parts.values() for item in items[:EXAMPLES] if isinstance(item, Photo)]
        finding.examples = [f"{own.path}  is  {plan.classes[own.label]}" for own in photos[:EXAMPLES]]
    elif "class_table" in form.DATASET.options:
        pairs = [item for items in plan.parts.values() for item in items if isinstance(item, Pair)]
        seen = mask_survey.survey(source, pairs)
        finding.masks, finding.question, finding.overlap = seen.found, seen.question, seen.overlap
        finding.options = mask_classes.option(seen.classes)
        finding.warnings = [*plan.warnings, *seen.warnings]
        problems.found += seen.problems
        finding.examples = [_example(pair) for pair in pairs[:EXAMPLES]]
        if problems.found and pairs and not _problems_of(form, source, replace(options, allow_partial=True)):
            finding.options = f"{finding.options} --allow-partial".lstrip()
    finding.problems = discover.by_kind(problems.found)
    return finding


def _problems_of(form: formats.Format, source: Source, options: Options) -> list[str]:
    problems = Problems(str(source), lenient=options.allow_partial)
    form.plan(source, options, problems)
    return problems.found


def _example(pair: Pair) -> str:
    return f"{pair.image.path}  with  {', '.join(file.path for file in pair.masks[:EXAMPLES])}"


def _cases(plan: Plan) -> list[str]:
    """The files of three volumes."""
    cases = {
        case.key: case for items in plan.parts.values() for item in items for case in [getattr(item, "case", item)]
    }
    names = sorted(cases, key=natural_key)
    shown = [cases[name] for name in names[:: max(1, len(names) // EXAMPLES)][:EXAMPLES]]
    return ["  with  ".join(filter(None, _case(case))) for case in shown]


def _case(case: Item) -> tuple[str, str]:
    """Its image, and its masks where they are in files of their own."""
    if not isinstance(case, ScanCase):
        return case.files[0].path, ", ".join(file.path for file in case.files[1:EXAMPLES])
    several = f" ({len(case.image.files)} files)" if len(case.image.slices) > 1 else ""
    masks = [mask.file.path for mask in case.masks if mask.file != case.image.file]
    return f"{case.image.file.path}{several}", ", ".join(masks[:EXAMPLES])
