"""`transfer report`: equal weights have one column, and results of two students never mix."""

import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from training import write_teacher

from storage.errors import UsageError
from transfer.cli import cli
from transfer.collect import collect
from transfer.report import write_report
from transfer.results import RunScore, write_results
from transfer.starts import open_starts

SETTINGS = {"device": "cpu", "workers": 1, "data": "photos & more"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    for number, name in enumerate(("student", "hard", "other")):
        (root / name).mkdir()
        write_teacher(root / name / "student.safetensors", seed=number)
    return root


def starts_of(base, name="student"):
    hard = base / "hard" / "student.safetensors"
    return open_starts(base / name / "student.safetensors", ("scratch", f"hard={hard}"))


def result(folder, task, metric, starts, values, notes=()):
    runs = {
        start.name: (start, [RunScore(s, {metric: v}, 60.0) for s, v in enumerate(values[row])])
        for row, start in enumerate(starts)
    }
    folder.mkdir(parents=True, exist_ok=True)
    data = {"val": {"location": f"{task} <images>"}}
    write_results(folder / f"{task}.json", task, metric, data, SETTINGS, runs, notes)


def probe_json(folder, base, hard="some/path"):
    folder.mkdir(parents=True, exist_ok=True)
    student, _, other = starts_of(base)

    def network(identity, top1):
        return {
            "arch": "resnet8", "identity": identity, "width": 64,
            "linear": {"top1": top1, "decay": 1.0, "held_out": {}, "note": None},
            "knn": {"10": top1 / 2},
            "few_shot": [{"shots": 1, "method": "1-nn", "mean": 0.2, "deviation": 0.1,
                          "runs": [0.1, 0.3]}],
        }  # fmt: skip

    values = {
        "format": 1, "task": "probe", "train": {"location": "a"}, "val": {"location": "b"},
        "crop": "centre", "settings": {"fit": "ridge"}, "choice": "", "notes": ["a note"],
        "networks": {"student": network(student.identity, 0.9),
                     "random": network("random 0 torch 2", 0.3),
                     hard: network(other.identity, 0.6)},
    }  # fmt: skip
    (folder / "probe.json").write_text(json.dumps(values))


@pytest.fixture
def results(base, tmp_path):
    three = [[0.6, 0.7, 0.8], [0.5, 0.5, 0.5], [0.6, 0.6, 0.6]]
    result(tmp_path / "a", "classify", "top1", starts_of(base), three, ["chosen on nothing"])
    result(tmp_path / "b", "segment", "miou", starts_of(base)[:2], [[0.4], [0.1]])
    probe_json(tmp_path / "a" / "probe", base)
    return tmp_path


def test_all_tasks_stand_in_one_table(results):
    values = write_report([results], results / "out")
    assert list(values["starts"]) == ["student", "scratch", "hard"]  # the probe's names are ours
    assert [task["task"] for task in values["tasks"]] == ["classify", "segment", "probe"]
    lines = (results / "out" / "report.md").read_text().splitlines()
    assert lines[2:9] == [
        "| task | judged on | metric | student | scratch | hard | student − scratch |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| classify | classify <images> | top1 | 70.00 ± 10.00 | 50.00 ± 0.00 | 60.00 ± 0.00 "
        "| +20.00 |",
        "| segment | segment <images> | miou | 40.00 | 10.00 | – | +30.00 |",
        "| probe | b | linear probe | 90.00 | 30.00 | 60.00 | +60.00 |",
        "| probe | b | k-NN, k = 10 | 45.00 | 15.00 | 30.00 | +30.00 |",
        "| probe | b | 1 shots, 1-nn | 20.00 ± 10.00 | 20.00 ± 10.00 | 20.00 ± 10.00 | +0.00 |",
    ]
    text = "\n".join(lines)
    assert "| classify | classify <images> | 01:00 | 01:00 | 01:00 | 3 |" in text
    assert "* chosen on nothing" in text and "* a note" in text
    saved = json.loads((results / "out" / "report.json").read_text())
    assert saved["tasks"][0]["rows"][0]["scores"]["student"]["values"] == [0.6, 0.7, 0.8]


class Tags(HTMLParser):
    """Fails where tags don't nest."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_draws_a_bar_for_every_start_and_asks_for_nothing(results):
    write_report([results], results / "out")
    html = (results / "out" / "report.html").read_text()
    tags = Tags()
    tags.feed(html)
    assert tags.open == [] and "script" not in tags.seen
    assert "http://" not in html and "https://" not in html
    assert "<images>" not in html and "classify &lt;images&gt;" in html
    charts = re.findall(r"<svg.*?</svg>", html, re.S)
    assert len(charts) == 5  # classify, segment, three of the probe
    bars = ElementTree.fromstring(charts[0]).findall("rect")
    assert [bar.find("title").text for bar in bars] == [
        "student: 70.0 %", "scratch: 50.0 %", "hard: 60.0 %",
    ]  # fmt: skip
    widths = [float(bar.get("width")) for bar in bars]
    assert widths[1] / widths[0] == pytest.approx(50 / 70, abs=1e-3)


def test_results_of_two_students_are_refused(base, results):
    result(results / "c", "detect", "ap", starts_of(base, "other"), [[0.1]] * 3)
    with pytest.raises(UsageError, match=r"detect.json is of another student \(resnet8, "):
        write_report([results], results / "out")
    assert not (results / "out").exists()


def test_a_name_for_two_weights_is_refused(base, tmp_path):
    other = base / "other" / "student.safetensors"
    student = base / "student" / "student.safetensors"
    result(tmp_path / "a", "classify", "top1", starts_of(base), [[0.1]] * 3)
    mixed = open_starts(student, (f"hard={other}",))
    result(tmp_path / "b", "segment", "miou", mixed, [[0.1]] * 2)
    with pytest.raises(UsageError, match="has other weights by the name 'hard'"):
        collect([tmp_path])


def test_a_result_given_twice_counts_once(results):
    path = results / "a" / "classify.json"
    assert len(collect([path, results / "a", path]).tasks) == 2


def test_folders_without_results_and_damaged_ones_are_one_line(results):
    (results / "empty").mkdir()
    with pytest.raises(UsageError, match=r"empty holds no result \(classify.json, segment.json"):
        collect([results / "empty"])
    probe = results / "a" / "probe" / "probe.json"
    for text in ("{", '{"networks": {}}', "[]"):
        probe.write_text(text)
        with pytest.raises(UsageError, match="can't be read as a probe's result"):
            collect([probe])


def test_the_command_overwrites_only_when_asked(results):
    arguments = ["report", str(results), "--out", str(results / "out")]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert "| classify |" in done.stdout and "report.html" in done.stdout
    with pytest.raises(UsageError, match=r"report.json is there already.*--overwrite"):
        CliRunner().invoke(cli, arguments, catch_exceptions=False)
    again = CliRunner().invoke(cli, [*arguments, "--overwrite", "--json"], catch_exceptions=False)
    assert json.loads(again.stdout)["arch"] == "resnet8"
