"""What becomes of a block whose Ray actor dies, with a stand-in for Ray."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from labelgen.parallel.local import DeadProcessError
from labelgen.parallel.ray_engine import MOST_DEATHS, Failure, _Tasks


class ActorDiedError(Exception):
    """As ray.exceptions.RayActorError."""


class StandIn:
    """Ray with actors that die at chosen tasks, before or after their block is written."""

    exceptions = SimpleNamespace(RayActorError=ActorDiedError)

    def __init__(self, deaths: dict[int, str]) -> None:
        self.deaths = deaths  # by the task's number
        self.given: list[int] = []
        self.written: list[int] = []
        self.actors = 0

    def actor(self) -> SimpleNamespace:
        self.actors += 1
        return SimpleNamespace(label=SimpleNamespace(remote=self._give))

    def _give(self, block: int) -> int:
        self.given.append(block)
        if self.deaths.get(len(self.given) - 1) != "before":
            self.written.append(block)
        return len(self.given) - 1

    def wait(self, tasks: list[int], timeout: float) -> tuple[list[int], list[int]]:
        return tasks[:1], tasks[1:]

    def get(self, task: int) -> Failure | None:
        if task in self.deaths:
            raise ActorDiedError
        return None

    def label(self, blocks: list[int], processes: int = 2) -> None:
        missing = lambda block: block not in self.written  # noqa: E731
        _Tasks(self, self.actor, blocks, processes, is_missing=missing).run(None)


def test_a_block_that_a_dead_actor_left_unwritten_goes_to_another(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ray = StandIn({1: "before"})
    ray.label([0, 1, 2, 3])
    assert sorted(ray.given) == [0, 1, 1, 2, 3]
    assert sorted(ray.written) == [0, 1, 2, 3]
    assert ray.actors == 3
    assert capsys.readouterr().err == "a Ray actor died: block 1 goes to another one\n"


@pytest.mark.parametrize("task", [0, 2, 3])
def test_a_block_that_a_dead_actor_had_written_is_not_labelled_again(
    task: int, capsys: pytest.CaptureFixture[str]
) -> None:
    ray = StandIn({task: "after"})
    ray.label([0, 1, 2, 3])
    assert sorted(ray.given) == [0, 1, 2, 3] == sorted(ray.written)
    block = ray.given[task]
    assert capsys.readouterr().err == f"a Ray actor died: block {block} was finished\n"


def test_actors_that_die_one_after_the_other_end_the_run() -> None:
    ray = StandIn(dict.fromkeys(range(100), "before"))
    with pytest.raises(DeadProcessError, match="may be out of memory"):
        ray.label([0, 1, 2, 3], processes=1)
    assert len(ray.given) == MOST_DEATHS + 1
