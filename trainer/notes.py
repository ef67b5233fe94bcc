"""What a run's settings mean for the labels that it learns from, said once, as lines."""

from __future__ import annotations

from trainer.config import TrainConfig
from trainer.data import TrainingData
from trainer.plan import plan_run, views_reused


def run_notes(config: TrainConfig, data: TrainingData, taught_at: int | None) -> tuple[str, ...]:
    """Notes of a run that hold before it begins.

    Args:
        taught_at: side of the crops that the teacher saw, None where none teaches.
    """
    return (*_side_note(config, taught_at), *_reuse_note(config, data, taught_at))


def _side_note(config: TrainConfig, taught_at: int | None) -> tuple[str, ...]:
    """Labels are of a view's box: cut at another side, it is the same view but other pixels."""
    schedule = (config.resolution.start, config.resolution.end)
    sides = {side for side in schedule if side is not None}
    used = sorted(sides or {config.student.input_size})
    if taught_at is None or used == [taught_at]:
        return ()
    shown = f"{used[0]} to {used[-1]}" if len(used) > 1 else str(used[0])
    return (
        f"the student's crops have {shown} pixels a side and the teacher's had {taught_at}: the "
        "same boxes, cut at another size; their labels are the teacher's answers at its own",
    )


def _reuse_note(config: TrainConfig, data: TrainingData, taught_at: int | None) -> tuple[str, ...]:
    if taught_at is None:
        return ()
    passes = plan_run(
        len(data.rows), config.batch_size, config.views_per_image, config.epochs,
        config.epoch_counting,
    )  # fmt: skip
    taken, again = views_reused(passes, config.seed, data.stored_views)
    if not again:
        return ()
    return (
        f"the store's {data.stored_views} views of an image end before the schedule does: of the "
        f"{taken} that it takes, {again} are ones that were taken before",
    )
