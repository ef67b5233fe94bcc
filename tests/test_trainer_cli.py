"""The trainer's command line: results on stdout, one clear line for errors, exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_folder
from training import make_store

from trainer.cli import main

TRAINER = str(Path(sys.executable).with_name("trainer"))


def run(*arguments, cwd):
    return subprocess.run(
        [TRAINER, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, timeout=300
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("cli")
    write_folder(root / "images", classes=3, per_class=4)
    make_store(root / "images", root / "store.zarr")
    return root


@pytest.fixture(scope="module")
def trained(world):
    done = run("fit", "--labels", "store.zarr", "--student", "resnet8", "--epochs", 1,
               "--batch-size", 16, "--device", "cpu", "--val", "images", "--json",
               cwd=world)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_fit_as_typed_finds_the_images_by_the_stores_hint(trained):
    assert trained["steps"] == 3
    assert trained["student"] == "resnet8"
    assert 0 <= trained["evaluation"]["top1"] <= 1


def test_evaluate_repeats_the_runs_own_figure(world, trained):
    done = run("evaluate", trained["checkpoint"], "--val", "images", "--device", "cpu", "--json",
               cwd=world)  # fmt: skip
    assert json.loads(done.stdout) == trained["evaluation"]


def test_pack_writes_once_and_refuses_to_overwrite(world):
    first = run("pack", "--data", "images", "--out", "mine.beton", "--json", cwd=world)
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)
    again = run("pack", "--data", "images", "--out", "mine.beton", cwd=world)
    assert again.returncode != 0
    assert "--overwrite" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["fit", "--labels", "nowhere.zarr"], 1, "nowhere.zarr"),
        (["fit", "--labels", "store.zarr", "--student", "resnet9"], 2, "resnet8"),
        (["fit", "--labels", "store.zarr", "--views-per-image", "9"], 2, "holds 8 views"),
        (["fit", "--labels", "store.zarr", "--device", "tpu3"], 2, "--device"),
        (["fit", "--data", "nowhere"], 2, "nowhere"),
        (["fit", "--method", "fkd", "--data", "images"], 2, "--labels"),
        (["fit", "--bogus"], 2, "--bogus"),
        (["evaluate", "store.zarr/zarr.json", "--val", "images"], 2, "zarr.json"),
        (["pack", "--data", "store.zarr/labels"], 2, "no images"),
    ],
)
def test_misuse_gives_one_line_and_its_exit_code(world, arguments, code, text, monkeypatch, capsys):
    monkeypatch.chdir(world)
    monkeypatch.setattr("sys.argv", ["trainer", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    errors = capsys.readouterr().err
    assert ended.value.code == code, errors
    assert text in errors
    assert "Traceback" not in errors
    assert len([line for line in errors.splitlines() if "rror" in line]) == 1, errors
