"""The rules of a promotion, each looked at: does the version keep it, and what was seen."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rwkvctl.base.directions import smaller_is_better
from rwkvctl.base.errors import JobFailedError, UserError
from rwkvctl.config.specs.rules import Most, NotWorse, PromotionRules
from rwkvctl.registry import cases, gates
from rwkvctl.registry.download import downloaded
from rwkvctl.registry.tags import fields

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True)
class Checked:
    """A rule, and whether a version keeps it."""

    holds: bool
    line: str
    """What was seen, with the bound."""


def check(
    client: MlflowClient,
    rules: PromotionRules,
    candidate: ModelVersion,
    aliases: Mapping[str, int],
    tracking_uri: str,
) -> Iterator[Checked]:
    """Look at every rule; none is left out where another one is not kept."""
    for gate in rules.gates:
        yield said(partial(gates.check_gate, client, gate, candidate, aliases))
    if (rule := rules.not_worse) is not None:
        yield said(lambda: not_worse(client, rule, candidate, aliases))
    model = f"models:/{candidate.name}/{candidate.version}"
    if (form := rules.export) is not None:
        yield said(lambda: exported(downloaded(model, tracking_uri=tracking_uri), form))
    if rules.most != Most():
        yield from costs(rules.most, candidate, lambda: downloaded(model, tracking_uri=tracking_uri))


def said(look: Callable[[], str]) -> Checked:
    """What a look says that raises what is not so."""
    try:
        return Checked(True, look())
    except (UserError, JobFailedError) as error:
        return Checked(False, str(error))


def not_worse(client: MlflowClient, rule: NotWorse, candidate: ModelVersion, aliases: Mapping[str, int]) -> str:
    """By a paired comparison on the test cases of both; raises UserError if it may be worse."""
    from rwkvctl.training.paired import paired

    if rule.than not in aliases:
        return f"{rule.metric}: no {rule.than} to compare with yet"
    other = client.get_model_version(candidate.name, str(aliases[rule.than]))
    if other.version == candidate.version:
        return f"{rule.metric}: it is {rule.than} already"
    gates.check_same_data(candidate, other, "not_worse", rule.than)
    ours, theirs = (cases.scores_of(client, version, rule.metric) for version in (candidate, other))
    found = paired(rule.metric, ours, theirs)
    worst = -found.high if smaller_is_better(rule.metric) else found.low
    line = (
        f"{rule.metric} {found.first:.4f} beside {found.second:.4f} of {rule.than} (version {other.version}) over "
        f"{found.cases} cases: difference {found.difference:+.4f}, 95 % interval {found.low:+.4f} to "
        f"{found.high:+.4f}, Wilcoxon p {found.p:.2g}"
    )
    if worst < -rule.margin:
        raise UserError(f"{line}: it may be worse by more than {rule.margin:g}")
    return line


def exported(folder: Path, form: str) -> str:
    """It can be exported, and the file gives the masks of predict; raises what keeps it from that."""
    from rwkvctl.models import bundle
    from rwkvctl.models.export_parity import MOST_DIFFERENT
    from rwkvctl.models.export_whole import export

    bundle.require(bundle.read_info(folder), "segmentation", "export")
    with tempfile.TemporaryDirectory() as temporary:
        parity = export(*bundle.load(folder), Path(temporary) / f"model.{form}", form).parity
    return (
        f"export to {form}: at most {parity.different:.3%} of an image's pixels differ from predict's "
        f"(<= {MOST_DIFFERENT:.3%}), probabilities by {parity.probability:.1e}"
    )


def costs(most: Most, candidate: ModelVersion, folder: Callable[[], Path]) -> Iterator[Checked]:
    """Parameters and MACs as the training noted them; size and latency of the model itself."""
    for name, tag, bound in (("parameters", "parameters", most.parameters), ("macs", "macs_paper", most.macs)):
        if bound is not None:
            value = fields(candidate.tags).get(tag, "")
            known = value.isdigit()
            line = f"{name} {int(value):,}" if known else f"{name}: not known of this version"
            yield bounded(line, float(value) if known else float("inf"), bound, f"{bound:,.0f}")
    if most.megabytes is not None:
        from rwkvctl.models.bundle import weights_path

        size = weights_path(folder()).stat().st_size / 1e6
        yield bounded(f"weights {size:.1f} MB", size, most.megabytes, f"{most.megabytes:g}")
    if most.latency_ms is not None:
        from rwkvctl.models.latency import latency

        found = latency(folder())
        line = f"latency {found.ms:.1f} ms for one {found.what} on {found.device}"
        yield bounded(line, found.ms, most.latency_ms, f"{most.latency_ms:g}")


def bounded(line: str, value: float, bound: float, shown: str) -> Checked:
    return Checked(value <= bound, f"{line} {'<=' if value <= bound else 'is not <='} {shown}")
