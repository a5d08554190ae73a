"""One optimiser step: the gradient of a global batch, micro-batch by micro-batch, and the update."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rwkv_jobs.form import TrainingForm, frozen_statistics
from rwkv_jobs.worker import Worker, seed_step
from rwkvctl.base.errors import JobFailedError
from rwkvctl.config.specs.jobs import TrainingSpec
from rwkvctl.training.checkpoint import Position
from rwkvctl.training.optimizer import make_schedule

Total = Callable[[Tensor], Tensor]
"""Adds up a vector over the whole global batch, so that gradients pass through to the own part."""
LossOf = Callable[[int, Total], Tensor]
"""The loss of the global batch, from this worker's micro-batch of that number and the totals of all others."""

NEVER = torch.iinfo(torch.int64).max
WATCHED = ("the loss", "the gradient", "a weight")
MOST_SKIPPED = 10
"""Updates in a row that may be left out (`train.on_nan: skip`) before it is clear that none will come again."""


class NotFinite(JobFailedError):
    """A loss, a gradient or a weight is NaN or infinite; `step` counts from 1."""

    def __init__(self, step: int, what: str, remedy: str):
        super().__init__(f"step {step}: {what} is not finite; {remedy}")
        self.step, self.what = step, what
        self.weights_before = what != "a weight"  # the weights are still those before the step


class Stepper:
    """Takes optimiser steps.

    Whether loss and gradient are finite is noted on the device, and a step whose gradient is not takes no update there
    (nor, with `on_nan: stop`, does any after it), so that the host need not wait for the device to find out: on a GPU
    it looks with the metrics and before a checkpoint, on a CPU at once. With the same look all workers learn what has
    failed beside the steps on one of them: `failure` returns it, without waiting for anything.
    """

    def __init__(
        self,
        spec: TrainingSpec,
        worker: Worker,
        form: TrainingForm,
        optimizer: Optimizer,
        steps_per_epoch: int,
        position: Position,
        say: Callable[[str], None],
        failure: Callable[[], BaseException | None] = lambda: None,
    ):
        self.spec, self.worker, self.form, self.optimizer = spec, worker, form, optimizer
        self.say, self.failure = say, failure
        self.position = position
        self.rate = make_schedule(spec, steps_per_epoch)
        all_parts = spec.micro_batches(worker.world_size)
        self.parts = len(range(worker.rank, all_parts, worker.world_size))
        self.in_last_round = all_parts % worker.world_size or worker.world_size
        self.scaler = torch.amp.GradScaler(worker.device.type, enabled=spec.train.precision == "fp16")
        if position.scaler:
            self.scaler.load_state_dict(position.scaler)
        self.parameters = list(form.model.parameters())
        self.looks_at_once = worker.device.type == "cpu"
        self.diverged = torch.full((len(WATCHED),), NEVER, device=worker.device)  # the first step with such a one
        self.in_a_row = torch.zeros((), dtype=torch.int64, device=worker.device)  # steps like that
        self.loss = self.norm = torch.zeros((), device=worker.device)

    def step(self, loss_of: LossOf, step: int, *, linear: bool) -> None:
        """Gradients, clipping, update.

        linear: the loss is a sum over images. Others are quotients of sums, whose gradient needs the sums of the whole
            batch: with more than one micro-batch these come from a forward pass without gradients, ahead of the others.

        Raises:
            NotFinite: on every worker, once the loss or the gradient of a step was not finite.
            JobFailedError: on every worker, once `failure` has returned something on one.
        """
        self.optimizer.zero_grad(set_to_none=True)
        statistics = self._statistics()
        self.loss = self.gradients(loss_of, step, linear)
        self.scaler.unscale_(self.optimizer)
        self.norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if limit := self.spec.optimizer.clip_grad:
            nn.utils.clip_grads_with_norm_(self.parameters, limit, self.norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step) * group.get("lr_scale", 1.0)
        finite = self._watch_gradient(step + 1)
        for kept, now in statistics:
            now.copy_(torch.where(finite, now, kept))
        self._update(step + 1, finite)

    # Gradients --------------------------------------------------------------------------------------------------------

    def gradients(self, loss_of: LossOf, step: int, linear: bool) -> Tensor:
        """Backward passes of all own micro-batches; the loss of the global batch, up to the mean over the workers."""
        if linear:
            return self._passes(lambda part: loss_of(part, lambda own: own * self.worker.world_size), step).sum()
        if self.parts == 1 and self.in_last_round == self.worker.world_size:
            return self._passes(lambda part: loss_of(part, self.worker.sum), step).sum()
        totals = self._totals(loss_of, step)

        def with_gradient(part: int) -> Tensor:
            of_all = iter(totals)
            # The value of the whole batch with the gradient of the own part, since gradients are averaged over workers.
            return loss_of(part, lambda own: next(of_all) + self.worker.world_size * (own - own.detach()))

        return self._passes(with_gradient, step).mean()

    def _passes(self, loss_of: Callable[[int], Tensor], step: int) -> Tensor:
        """(parts,) losses, after a backward pass each; gradients are sent with the last."""
        losses = []
        for part in range(self.parts):
            with nullcontext() if part == self.parts - 1 else self.form.accumulating():
                self._begin(part, step)
                loss = loss_of(part)
                self.scaler.scale(loss).backward()
            losses.append(loss.detach())
        return torch.stack(losses)

    @torch.no_grad()
    def _totals(self, loss_of: LossOf, step: int) -> list[Tensor]:
        """What `loss_of` adds up, over the global batch, in the order in which it asks."""
        own: list[list[Tensor]] = []
        with frozen_statistics(self.form.model):
            for part in range(self.parts):
                self._begin(part, step)
                asked: list[Tensor] = []
                loss_of(part, lambda sums, asked=asked: asked.append(sums) or sums)  # type: ignore[misc]
                own.append(asked)
        sums = [torch.stack(of_parts).sum(0) for of_parts in zip(*own, strict=True)]
        return list(self.worker.sum(torch.cat(sums)).split([len(x) for x in sums]))

    def _begin(self, part: int, step: int) -> None:
        """Before a forward pass; what is random in the model is a function of step and micro-batch alone."""
        world = self.worker.world_size
        number = self.worker.rank + part * world
        last_round = number // world == (self.spec.micro_batches(world) - 1) // world
        self.form.take_part(self.in_last_round if last_round else world)
        seed_step(self.spec.seed, step, number)

    # The update -------------------------------------------------------------------------------------------------------

    def _statistics(self) -> list[tuple[Tensor, Tensor]]:
        """Copies of the running statistics of batch norms beside them, where a step that is skipped must not count."""
        if self.spec.train.on_nan == "stop":
            return []
        return [(x.clone(), x) for x in self.form.model.buffers() if x.is_floating_point()]

    def _watch_gradient(self, step: int) -> Tensor:
        """Whether the gradient, which is the same on all workers, is finite; noted, and the loss too."""
        gradient = self.norm
        if (
            self.scaler.is_enabled()
        ):  # too large a scale makes such gradients: it leaves out the update, and scales less
            gradient = self.loss
        self._watch(step, self.loss, gradient)
        finite = gradient.isfinite()
        self.in_a_row = (self.in_a_row + 1) * ~finite
        return finite

    def _update(self, step: int, finite: Tensor) -> None:
        """The optimiser's step, unless the gradient is not finite."""
        if self.looks_at_once and not self.check_finite():
            return
        bad = ~finite if self.spec.train.on_nan == "skip" else self.diverged.amin() < NEVER
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif is_fused(self.optimizer):
            self.optimizer.found_inf = bad.float()  # type: ignore[attr-defined]  # as a scaler would tell it
            self.optimizer.step()
        elif not bad:
            self.optimizer.step()
        largest = nn.utils.get_total_norm(self.parameters, float("inf"))  # which overflows only where a weight does
        self._watch(step, largest, first=2)

    def _watch(self, step: int, *values: Tensor, first: int = 0) -> None:
        """Note on the device whether these are finite, as those of WATCHED from `first` on."""
        seen = slice(first, first + len(values))
        finite = torch.stack([value.detach().float() for value in values]).isfinite()
        self.diverged[seen] = self.diverged[seen].minimum(torch.where(finite, NEVER, step))

    def check_finite(self) -> bool:
        """Whether all was finite on all workers since the last look; if not, and such updates are skipped, the log says
        so.

        Raises:
            NotFinite: on all workers, if it was not; with `on_nan: skip`, if it was a weight or ten updates in a row.
            JobFailedError: on all workers, if `failure` returned something on one.
        """
        if self.scaler.is_enabled():
            self.position.scaler = self.scaler.state_dict()
        failure = self.failure()
        own = torch.cat([self.diverged, -self.in_a_row.reshape(1), self.diverged.new_tensor([-bool(failure)])])
        *first, in_a_row, failed = self.worker.least(own).tolist()
        if failed:
            self._raise_on_all(failure)
        step = min(first)
        if step == NEVER:
            return True
        what = WATCHED[first.index(step)]
        if self.spec.train.on_nan == "stop" or what == "a weight" or -in_a_row >= MOST_SKIPPED:
            raise NotFinite(step, what, self.remedy())
        self.diverged.fill_(NEVER)
        self.say(f"step {step}: {what} is not finite; its update is skipped")
        return False

    def _raise_on_all(self, failure: BaseException | None) -> NoReturn:
        """Where it happened as it is, elsewhere its message."""
        own = failure and (str(failure) or type(failure).__name__)
        message = next(told for told in self.worker.gather(own) if told)
        raise failure or JobFailedError(message)

    def remedy(self) -> str:
        """What else to try. Continuing would come to the same step again."""
        clip = self.spec.optimizer.clip_grad
        tries = [
            f"optimizer.lr below {self.spec.optimizer.lr:g}",
            f"optimizer.clip_grad below {clip:g}" if clip else "optimizer.clip_grad=1",
        ]
        if self.spec.train.precision != "fp32":
            tries.append("train.precision=fp32")
        return f"start a new run with {', '.join(tries[:-1])} or {tries[-1]}"

    def metrics(self) -> dict[str, float]:
        """Loss, rate and gradient norm of the last step. Raises what `check_finite` does."""
        if not self.looks_at_once:
            self.check_finite()
        values = {
            "train/loss": self.worker.mean(self.loss).item(),
            "train/lr": max(group["lr"] for group in self.optimizer.param_groups),
            "train/grad_norm": self.norm.item(),
        }
        return {name: value for name, value in values.items() if math.isfinite(value)}  # of a step that was skipped


def is_fused(optimizer: Optimizer) -> bool:
    """Whether an optimiser can be told on the device to leave out an update."""
    return bool(optimizer.defaults.get("fused"))
