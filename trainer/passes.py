"""All passes of a run over its images: loaders, steps, checkpoints, evaluations."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor, nn

from storage.images import ImageFolder
from storage.progress import Progress
from trainer.batches import BatchSource
from trainer.config import TrainConfig
from trainer.data import TrainingData
from trainer.distributed import World
from trainer.evaluate import Evaluation, FurtherScores, evaluate
from trainer.inputs import create_loader
from trainer.loop import check_weights, train_steps
from trainer.metrics import MetricsLog
from trainer.networks import Networks, save
from trainer.order import Pages
from trainer.plan import (
    EpochPlan,
    Pass,
    images_per_step,
    pieces,
    plan_epoch,
    plan_run,
    share_of_rank,
)
from trainer.recorder import RunState, StepRecorder, stop_on_signal
from trainer.replay.epoch import ReplayLoader
from trainer.replay.pages import file_pages
from trainer.resolution import check_sides
from trainer.schedule import lr_at

Evaluations = tuple[Evaluation | None, Evaluation | None]  # of the student, of its average
NAMED_IMAGES = 5  # of the step whose loss went wrong


class Passes:
    """The passes of a run from its state on.

    Args:
        val: images to evaluate on after each pass; None evaluates never.
        log: of the first process.
        state: where the run stands; moved on.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: TrainingData,
        val: ImageFolder | None,
        out: Path,
        networks: Networks,
        state: RunState,
        log: MetricsLog | None,
        device: torch.device,
        world: World,
        *,
        loader_kind: str,
        workers: int,
    ) -> None:
        self._config, self._data, self._val, self._out = config, data, val, out
        self._networks, self._state, self._log = networks, state, log
        self._device, self._world = device, world
        self._loader_kind, self._workers = loader_kind, workers
        self._passes = plan_run(
            len(data.rows), config.batch_size, config.views_per_image, config.epochs,
            config.epoch_counting,
        )  # fmt: skip
        last = self._passes[-1]
        self._total_steps = last.first_step + last.steps
        self._learner = world.wrap(
            networks.learner,
            device,
            find_unused_parameters=not networks.learner.method.trains_whole_student,
        )
        self._loaders: dict[int, ReplayLoader] = {}
        self.source = BatchSource(data, config.student, config.labels, device,
                                  reads_pages=config.order.kind == "quasi-random")  # fmt: skip
        self.evaluations: Evaluations = (None, None)
        self.recorder: StepRecorder

    def run(self) -> None:
        """Train from the state to the end.

        Raises:
            TrainingError: a signal, a loss that isn't finite, damaged or foreign data.
        """
        total, state = self._total_steps, self._state
        check_sides(self._networks.student, {self._side(one) for one in self._passes},
                    self._config.student)  # fmt: skip
        shown = Progress(
            total, "steps", "training", done=state.step, quiet=not self._world.is_first
        )
        with shown as progress:
            self.recorder = StepRecorder(state, self._log, progress, total, self._save,
                                         self._describe, self._measures, self._world)  # fmt: skip
            with stop_on_signal(self.recorder):
                for now, after in zip(self._passes, [*self._passes[1:], None], strict=True):
                    if now.number < state.epoch:
                        continue
                    self._train_pass(now, after)
                    state.end_pass(now)
                    self.recorder.save()
                    if after is None or (now.number + 1) % self._config.loop.evaluate_every == 0:
                        self.evaluations = self.evaluate()
                    self.recorder.check_stop()

    def evaluate(self) -> Evaluations:
        """Scores of the student and of its average; by the first process, for all."""
        found: Evaluations = (None, None)
        if self._val is not None and self._world.is_first:
            ema = self._networks.ema
            average = self._score(ema.module) if ema is not None else None
            student = self._networks.student
            further = functools.partial(self._networks.learner.method.scores, student)
            found = self._score(student, further), average
            for kind, scores in zip(("eval", "eval_ema"), found, strict=True):
                if scores is not None and self._log is not None:
                    step, epoch = self._state.step, self._state.epoch
                    self._log.write(kind, step, epoch=epoch, **scores.to_json())
        first: Evaluations = self._world.gather(found)[0]
        return first

    def _score(self, network: nn.Module, further: FurtherScores | None = None) -> Evaluation:
        assert self._val is not None
        return evaluate(network, self._val, self._config.student, device=self._device,
                        workers=self._workers, further=further)  # fmt: skip

    @property
    def finished(self) -> bool:
        """Whether no pass is left to train."""
        return self._state.epoch >= len(self._passes)

    def _describe(self, step: int) -> str:
        """A step's place and images, as the plan has them."""
        here = next(one for one in reversed(self._passes) if one.first_step <= step)
        size, number = self._step_images(here.views), step - here.first_step
        order = self._plan(here).order[number * size : (number + 1) * size]
        rows = self._data.rows[share_of_rank(order, size, self._world.rank, self._world.size)]
        keys = [self._data.beton.keys[row] for row in rows]
        more = f" and {len(keys) - NAMED_IMAGES} more" if len(keys) > NAMED_IMAGES else ""
        return f"step {step} (epoch {here.number}, images {', '.join(keys[:NAMED_IMAGES])}{more})"

    def _measures(self) -> dict[str, float]:
        found = {"lr": float(self._networks.optimizer.param_groups[0]["lr"])}
        found |= self._networks.learner.method.measures()
        agreement = self._networks.learner.agreement()
        return found if agreement is None else found | {"agreement": agreement}

    def _save(self, state: RunState) -> None:
        check_weights(self._networks.student, f"step {state.step - 1}")
        save(self._out, self._config, self._networks, state, self._world)

    def _step_images(self, views: int) -> int:
        return images_per_step(self._config.batch_size, views, len(self._data.rows))

    def _loader(self, one: Pass) -> ReplayLoader:
        views, side = one.views, self._side(one)
        if views not in self._loaders:
            share = pieces(self._step_images(views), self._config.loop.accumulate, self._world.size)
            self._loaders[views] = create_loader(
                self._loader_kind,
                self._data.beton,
                size=side,
                views=views,
                interpolation=self._data.interpolation,
                padding=self._data.padding,
                batch_images=share,
                workers=self._workers,
                augment=self._data.augment,
            )
        self._loaders[views].resize(side)
        return self._loaders[views]

    def _side(self, one: Pass) -> int:
        return self._config.resolution.side(one.epoch) or self._config.student.input_size

    def _plan(self, one: Pass) -> EpochPlan:
        return plan_epoch(
            self._config.seed,
            one.number,
            num_images=len(self._data.rows),
            stored_views=self._data.stored_views,
            views_per_image=one.views,
            pages=self._pages(one),
        )

    def _pages(self, one: Pass) -> Pages | None:
        order = self._config.order
        if order.kind == "random":
            return None
        page = file_pages(self._data.beton.records["ptr"][self._data.rows])
        return Pages(page, order.open_pages, self._step_images(one.views), self._world.size)

    def _lr(self, now: Pass, step: int) -> float:
        fixed = now.lr_epoch is not None
        return lr_at(
            now.lr_epoch if now.lr_epoch is not None else step,
            self._config.schedule,
            peak=self._config.optim.lr,
            epoch_steps=1 if fixed else now.steps,
            epochs=self._config.epochs,
        )

    def _on_step(self, step: int, loss: Tensor, crops: int) -> None:
        if self._networks.ema is not None:
            self._networks.ema.update(self._networks.student)
        self.recorder.on_step(step, loss, crops)

    def _train_pass(self, now: Pass, after: Pass | None) -> None:
        """One pass; the labels of the one after it are read meanwhile."""
        self._networks.learner.method.begin_pass(self._config.epochs - now.epoch)
        batches = self.source.epoch(
            self._loader(now), now.number, self._plan(now), self._step_images(now.views),
            self._state.step_in_epoch, self._world,
            None if after is None else (after.number, self._plan(after)),
        )  # fmt: skip
        with self.recorder.timed():
            train_steps(
                self._learner,
                self._networks.optimizer,
                batches,
                lr_of_step=functools.partial(self._lr, now),
                first_step=self._state.step,
                on_step=self._on_step,
                accumulate=self._config.loop.accumulate,
                clip_norm=self._config.loop.clip_norm,
            )
