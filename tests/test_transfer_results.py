"""Result files of the tasks: what is summed up, kept, and refused."""

import json
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training import write_teacher

from storage.errors import UsageError
from transfer.licence import licence_note
from transfer.results import (
    RunScore,
    describe,
    load_score,
    read_results,
    run_once,
    save_score,
    shown,
    summarise,
    write_results,
)
from transfer.starts import SCRATCH, open_starts


@pytest.fixture(scope="module")
def starts(tmp_path_factory):
    student = write_teacher(tmp_path_factory.mktemp("results") / "student.safetensors")
    return open_starts(student, (SCRATCH,))


def scores(*values):
    return [RunScore(seed, {"top1": value}, 2.0 + seed) for seed, value in enumerate(values)]


def write(path, starts, notes=("one note",)):
    runs = {starts[0].name: (starts[0], scores(0.5, 0.7)), SCRATCH: (starts[1], scores(0.25))}
    settings = {"device": "cpu", "workers": 1}
    return write_results(path, "classify", "top1", {"name": "x"}, settings, runs, notes)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=5))
def test_the_deviation_is_that_of_a_sample(values):
    found = summarise(scores(*values))["top1"]
    assert found["mean"] == pytest.approx(sum(values) / len(values))
    assert found["deviation"] == pytest.approx(statistics.stdev(values))
    assert found["all"] == values


def test_one_run_has_no_deviation_and_metrics_that_a_run_lacks_are_left_out():
    assert summarise(scores(0.5))["top1"] == {"mean": 0.5, "deviation": None, "all": [0.5]}
    more = [*scores(0.5), RunScore(1, {"top1": 0.5, "other": 1.0}, 1.0)]
    assert list(summarise(more)) == ["top1"]
    assert (shown({"mean": 0.5, "deviation": None}), shown(None)) == ("50.00", "–")


def test_results_are_read_as_they_were_written(starts, tmp_path):
    values = write(tmp_path / "classify.json", starts)
    assert read_results(tmp_path / "classify.json") == json.loads(json.dumps(values))
    assert values["starts"]["student"]["summary"]["top1"]["mean"] == pytest.approx(0.6)
    assert values["machine"]["processes"] == 1
    text = describe(values)
    assert "60.00 ± 14.14" in text and "note: one note" in text and "25.00" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(format=9), "format 9, expected 1"),
        (lambda v: v.update(task="sing"), "is damaged"),
        (lambda v: v["starts"]["student"]["runs"][0]["metrics"].clear(), "is damaged"),
        (lambda v: v.pop("starts"), "is damaged"),
    ],
)
def test_a_result_of_another_form_is_refused(starts, tmp_path, change, message):
    path = tmp_path / "classify.json"
    write(path, starts)
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(UsageError, match=message):
        read_results(path)


def test_files_that_are_no_json_are_refused(tmp_path):
    (tmp_path / "classify.json").write_text('{"format": 1, ')
    for path in (tmp_path / "classify.json", tmp_path / "gone.json"):
        with pytest.raises(UsageError, match="can't be read as a result"):
            read_results(path)


def test_a_finished_run_is_found_again_and_one_with_other_settings_refused(tmp_path):
    assert load_score(tmp_path, {"lr": 0.1}) is None
    (score,) = scores(0.5)
    save_score(tmp_path, score, {"lr": 0.1, "size": (3, 4)})
    assert load_score(tmp_path, {"lr": 0.1, "size": (3, 4)}) == score
    with pytest.raises(UsageError, match=r"another run \(lr: 0.2, not 0.1\)"):
        load_score(tmp_path, {"lr": 0.2, "size": (3, 4)})
    (tmp_path / "score.json").write_text("{")
    with pytest.raises(UsageError, match=r"is damaged .*--overwrite"):
        load_score(tmp_path, {"lr": 0.1})


def test_a_missing_licence_is_said_and_one_in_the_folder_above_counts(tmp_path):
    folder = tmp_path / "set" / "images"
    folder.mkdir(parents=True)
    assert f"no licence file in {folder} or above" in licence_note(folder)
    other = tmp_path / "other"
    other.mkdir()
    assert f"no licence file in {folder} and {other} or" in licence_note(folder, other, folder)
    (tmp_path / "set" / "LICENCE.txt").write_text("free")
    assert licence_note(folder) is None
    (tmp_path / "set" / "LICENCE.txt").rename(folder / "COPYING")
    assert licence_note(folder) is None


def test_a_run_is_made_once_and_overwriting_takes_all_of_it_away_first(tmp_path):
    made, folder = [], tmp_path / "student" / "seed0"

    def run():
        made.append(sorted(path.name for path in folder.iterdir()))
        return RunScore(0, {"top1": 0.5}, 1.0)

    def ask(**options):
        return run_once(folder, {"lr": 1}, run, **{"overwrite": False, **options})

    first = ask()
    assert ask() == first and made == [[]]
    (folder / "overlays").mkdir()
    for name in ("checkpoint.pt", "metrics.jsonl", "overlays/a.png", "net.safetensors", "mine.txt"):
        (folder / name).touch()
    ask(overwrite=True, leaves=["net.safetensors"])
    assert made == [[], ["mine.txt"]]
    with pytest.raises(ZeroDivisionError):
        run_once(folder, {"lr": 1}, lambda: 1 / 0, overwrite=True)
    assert load_score(folder, {"lr": 1}) is None, "a run that was taken away is not finished"
