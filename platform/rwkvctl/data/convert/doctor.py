"""Which data set a download is, in which form, and what is missing or wrong: by names and headers, in seconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rwkvctl.base.errors import BadFile, UserError
from rwkvctl.data.convert import formats, guessing
from rwkvctl.data.convert.discover import Problems
from rwkvctl.data.convert.formats.base import Options
from rwkvctl.data.convert.sources import Source, open_sources


@dataclass
class Finding:
    """A data set that a source may be. `problems` are what `prepare` would refuse; masks are not opened here.

    options: what `prepare` must be told, examples of pairs and an open question, where names were guessed from.
    """

    dataset: str
    form: str
    samples: int = 0
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    options: str = ""
    examples: list[str] = field(default_factory=list)
    question: str = ""


@dataclass
class Diagnosis:
    """What was found, the likeliest first, and how many files of which kind there are."""

    findings: list[Finding]
    extensions: dict[str, int]


def examine(paths: Sequence[Path | str]) -> Diagnosis:
    """Ask every format whether it knows the source, and plan its preparation without reading the samples."""
    with open_sources(paths) as source:
        findings = [finding for form in formats.every() if (finding := _ask(form, source))]
        kinds = Counter(file.suffix or "no extension" for file in source.files)
        if all(finding.problems and finding.dataset == "folder" for finding in findings):
            findings = [*_guessed(source), *findings]
    # A generic format takes nearly everything; a special one without problems is the surest.
    generic = {form.DATASET.name for form in formats.every() if not form.DATASET.expected}
    special = [finding for finding in findings if finding.dataset not in generic]
    if len(special) > 1 or any(not finding.problems for finding in special):
        findings = special  # what a generic format would take is theirs
    findings.sort(key=lambda finding: (finding.dataset in generic, len(finding.problems)))
    return Diagnosis(findings, dict(kinds.most_common(8)))


def _guessed(source: Source) -> list[Finding]:
    """Images and masks of no known data set, by the patterns of the format `pairs`."""
    found = guessing.guess(source)
    if found is None:
        return []
    own = Finding("pairs", "patterns", found.samples, found.problems, options=found.options)
    own.examples, own.question = found.examples, found.question
    return [own]


def _ask(form: formats.Format, source: Source) -> Finding | None:
    name = form.recognise(source)
    if name is None:
        return None
    finding = Finding(form.DATASET.name, name)
    problems = Problems(str(source))
    try:
        plan = form.plan(source, Options(dataset=form.DATASET.name), problems)
    except (UserError, BadFile) as error:
        problems.add(str(error))
    else:
        finding.samples = sum(len(items) for items in plan.parts.values())
        finding.samples += sum(len(items) for shards in plan.adopted.values() for _, items in shards)
        finding.warnings = plan.warnings
    finding.problems = problems.found
    return finding
