"""docs/training.md says what the trainer does: settings, methods, recipes, files, numbers."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import write_folder
from training import make_store, request

from trainer import fit
from trainer.config import METHODS, SECTIONS, RunChoices
from trainer.metrics import read_metrics
from trainer.request import SETTING_OF
from trainer.settings import known_settings, parse_assignments, read_recipe, recipe_names
from trainer.step_config import default_optim
from trainer.trackers import TRACKERS

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = (DOCS / "training.md").read_text()
ROW = re.compile(r"^\| `([\w.]+)` \| ([^|]+) \| ([^|]+) \| ([^|]*)\|$", re.MULTILINE)
TYPES = {"string": str, "whole number": int, "number": float, "true or false": bool,
         "list of numbers": tuple[float, ...]}  # fmt: skip


def settings_table():
    rows = [(name, kind, default) for name, kind, default, _ in ROW.findall(PAGE)]
    return {name: (kind, default) for name, kind, default in rows if kind in TYPES}


def literal_default(name):
    """The default of a setting's own class."""
    section, _, field = name.rpartition(".")
    config = SECTIONS[section] if section else RunChoices
    return {f.name: f.default for f in fields(config)}[field]


def table_after(heading):
    """First cells of the rows of the first table after a heading, without their backticks."""
    text = PAGE.split(heading, 1)[1]
    rows = re.search(r"^\|-.*\n((?:\|.*\n)+)", text, re.MULTILINE)[1]
    return [line.split("|")[1].strip().strip("`") for line in rows.splitlines()]


def test_the_table_has_every_setting_once_and_no_other():
    names = [name for name, kind, *_ in ROW.findall(PAGE) if kind in TYPES]
    assert sorted(names) == sorted(known_settings())


@pytest.mark.parametrize("name", known_settings())
def test_the_table_has_the_settings_type(name):
    kind = TYPES[settings_table()[name][0]]
    assert known_settings()[name] in (kind, kind | None)


@pytest.mark.parametrize("name", known_settings())
def test_a_literal_default_is_that_of_the_code_and_words_stand_where_it_is_worked_out(name):
    text, default = settings_table()[name][1], literal_default(name)
    worked_out = {"optim.lr", "optim.weight_decay", "optim.decay_vectors",
                  "schedule.warmup_epochs"}  # fmt: skip
    if default is None or name in worked_out:
        assert "`" not in text
    else:
        value = parse_assignments([f"{name}={text.strip('`')}"])[name]
        assert text.startswith("`") and value == default


def test_defaults_in_words_are_those_that_are_worked_out():
    sgd, adamw = default_optim("sgd", 512), default_optim("adamw", 1024)
    table = {name: text for name, (_, text) in settings_table().items()}
    assert table["optim.lr"] == f"{sgd.lr} per 512 crops with sgd, else {adamw.lr} per 1024"
    assert float(table["optim.weight_decay"].split()[0]) == sgd.weight_decay
    assert float(table["optim.weight_decay"].split()[-1]) == adamw.weight_decay
    assert (sgd.decay_vectors, adamw.decay_vectors) == (True, False)


def test_every_flag_that_is_a_setting_names_one():
    assert set(SETTING_OF.values()) <= set(known_settings())


def test_every_method_recipe_and_tracker_is_named():
    assert sorted(table_after("## Methods")) == sorted(METHODS)
    for name in (*recipe_names(), *(f"--log {name}" for name in TRACKERS)):
        assert f"`{name}`" in PAGE


def test_the_recipe_of_the_page_can_be_read(tmp_path):
    (tmp_path / "mine.toml").write_text(re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)[1])
    assert read_recipe(str(tmp_path / "mine.toml"))["mix.kind"] == "cutmix"


@pytest.mark.parametrize(
    "page", ["training.md", "methods/fkd.md", "methods/kdep.md", "methods/hsakd.md"]
)
def test_settings_given_with_set_exist(page):
    text = (DOCS / page).read_text()
    for assignment in re.findall(r"--set ([a-z][\w.]+=[^\s`]+)", text):
        parse_assignments([assignment])
    sections = "|".join(SECTIONS)
    for name in re.findall(rf"`((?:{sections})\.\w+)", text):
        assert name == "student.safetensors" or name in known_settings()


def test_a_runs_files_and_numbers_are_all_explained(tmp_path):
    make_store(write_folder(tmp_path / "images", classes=3, per_class=4), tmp_path / "store.zarr")
    out = tmp_path / "run"
    fit(request(out, labels=tmp_path / "store.zarr", val=tmp_path / "images", epochs=1,
                settings={"loop.ema_decay": 0.5}))  # fmt: skip
    files = table_after("## What a run leaves")
    assert {path.name for path in out.iterdir()} == set(files)
    rows = {kind: f"{values} {when}" for kind, when, values in re.findall(
        r"^\| `(train|eval|eval_ema)` \| ([^|]+) \| ([^|]+) \|$", PAGE, re.MULTILINE)}  # fmt: skip
    for line in read_metrics(out / "metrics.jsonl"):
        kind = line.pop("kind")
        said = rows["eval" if kind == "eval_ema" else kind]
        for name in line:
            assert f"`{name}`" in said
    assert "the same of the moving average" in rows["eval_ema"]
