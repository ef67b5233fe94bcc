"""docs/methods/hsakd.md: the repository's commands have equivalents that parse."""

import re
import shlex
from pathlib import Path

import pytest
import test_docs
from test_subset_script import main as subset

from trainer.settings import recipe_names

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "methods" / "hsakd.md").read_text()
TORCHRUN = "torchrun --nproc-per-node 8 -m trainer.cli "
SCRIPTS = ("train_baseline_cifar.py", "train_teacher_cifar.py", "train_student_cifar.py",
           "train_student_few_shot.py", "train_teacher_imagenet.py", "train_student_imagenet.py",
           "train_online_kd_cifar.py", "train_online_kd_imagenet.py", "eval_rep.py",
           "preprocess_tinyimagenet.py")  # fmt: skip


def rows():
    """(there, here) of every row of the table of commands."""
    text = PAGE.split("## The repository's commands", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^\| (.*\w.*?) \| (.*) \|$", text, re.MULTILINE)[1:]


def commands():
    """Our commands of that table."""
    for _, here in rows():
        for command in re.findall(r"`([^`]+)`", here):
            command = command.replace(TORCHRUN, "trainer ")
            if command.split()[0] in test_docs.PROGRAMS:
                yield pytest.param(command, id=command[:60])


@pytest.mark.parametrize("line", list(commands()))
def test_a_command_of_the_table_parses_and_its_recipe_is_there(line):
    test_docs.test_a_documented_command_parses(line)
    words = shlex.split(line)
    if "--recipe" in words:
        assert words[words.index("--recipe") + 1] in recipe_names()


def test_every_script_of_the_repository_has_a_row():
    there = " ".join(left for left, _ in rows())
    assert [script for script in SCRIPTS if script not in there] == []


def test_the_script_that_draws_subsets_is_called_with_its_own_options():
    (line,) = (here for _, here in rows() if "subset.py" in here)
    words = shlex.split(line.strip("`"))
    given = [word for word in words if word.startswith("--")]
    assert set(given) <= {option for one in subset.params for option in one.opts}
