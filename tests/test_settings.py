"""Recipes, --set and flags: one table of names, one order of precedence."""

import tomllib

import pytest

from storage.errors import UsageError
from trainer.request import FitRequest
from trainer.settings import (
    RECIPES,
    known_settings,
    parse_assignments,
    read_recipe,
    recipe_names,
)


def write(path, text):
    path.write_text(text)
    return str(path)


def test_flags_go_over_set_and_set_over_the_recipe(tmp_path):
    recipe = write(
        tmp_path / "mine.toml",
        "epochs = 7\nseed = 3\n[optim]\nlr = 0.5\nmomentum = 0.8\n[loop]\nclip_norm = 2\n",
    )
    chosen = FitRequest(
        recipe=recipe, settings=parse_assignments(["optim.lr=0.25", "epochs=8"]), epochs=9
    ).chosen()
    assert chosen == {
        "epochs": 9, "seed": 3, "optim.lr": 0.25, "optim.momentum": 0.8, "loop.clip_norm": 2.0,
    }  # fmt: skip


def test_a_setting_that_does_not_exist_is_refused_with_the_nearest(tmp_path):
    recipe = write(tmp_path / "mine.toml", "[optim]\nmomentun = 0.8\n")
    with pytest.raises(UsageError, match=r"no setting 'optim.momentun'; nearest: optim.momentum"):
        read_recipe(recipe)
    with pytest.raises(UsageError, match=r"--set: there is no setting 'loop.ema'"):
        parse_assignments(["loop.ema=0.9"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [("epochs=two", "a whole number"), ("optim.lr=fast", "a number"), ("loop.compile=1", "true"),
     ("epochs=true", "a whole number"), ("schedule.milestones=[1, 'x']", "a number"),
     ("optim.lr", "NAME=VALUE")],
)  # fmt: skip
def test_a_value_of_another_type_is_refused_with_what_was_expected(text, expected):
    with pytest.raises(UsageError, match=expected):
        parse_assignments([text])


def test_values_are_toml_and_other_texts_are_strings():
    found = parse_assignments(
        ["student.arch=timm:vit_small_patch16_224", 'optim.name="adamw"', "optim.lr=1",
         "schedule.milestones=[30, 60.5]"]
    )  # fmt: skip
    assert found == {
        "student.arch": "timm:vit_small_patch16_224", "optim.name": "adamw", "optim.lr": 1.0,
        "schedule.milestones": (30.0, 60.5),
    }  # fmt: skip


def test_an_unknown_recipe_names_those_there_are():
    with pytest.raises(UsageError, match="nearest: fkd-resnet50, "):
        read_recipe("fkd-resnet5O")


def test_broken_toml_is_one_clear_line(tmp_path):
    with pytest.raises(UsageError, match="can't be read") as error:
        read_recipe(write(tmp_path / "bad.toml", "[optim\nlr = 1"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_of_the_package_is_complete_and_known(name):
    chosen = read_recipe(name)
    assert {"method", "epochs", "batch_size", "views_per_image", "student.arch", "optim.name",
            "optim.lr", "optim.weight_decay", "schedule.kind"} <= chosen.keys()  # fmt: skip
    text = (RECIPES / f"{name}.toml").read_text()
    assert text.startswith("# "), "a recipe says where its numbers come from"
    assert tomllib.loads(text)


def test_every_setting_has_a_type_that_a_recipe_can_write():
    for name, value in {"epochs": 3, "loop.accumulate": 2, "optim.nesterov": False}.items():
        assert name in known_settings()
        text = str(value).lower()
        assert parse_assignments([f"{name}={text}"]) == {name: value}
