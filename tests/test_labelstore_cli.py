"""labelstore on the command line: exit codes, stdout for results, one-line errors."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner
from store_helpers import fill_store, make_block, make_spec

from storage.cli import cli
from storage.sealing import seal
from storage.store import LabelStore


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-c", "from storage.cli import main; main()", *map(str, arguments)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def invoke(*arguments):
    """In process (fast): exit code as `main` would give it, and stdout."""
    result = CliRunner().invoke(cli, [*map(str, arguments)], standalone_mode=False)
    if result.exception:
        raise result.exception
    return result.return_value or 0, result.stdout


def test_seal_info_and_verify_tell_the_same_story(tmp_path):
    store = fill_store(tmp_path / "s", masked=[2])
    code, out = invoke("seal", store.path, "--json")
    root = json.loads(out)["root"]
    assert code == 0 and root == seal(store).root
    code, out = invoke("verify", store.path, "--full", "--json")
    report = json.loads(out)
    assert code == 0 and report["ok"] and report["root"] == root and report["problems"] == []
    code, out = invoke("info", store.path, "--json")
    info = json.loads(out)
    assert code == 0 and info["root"] == root and info["status"] == "sealed"
    assert (info["images"], info["views"], info["blocks"]) == (10, 6, 3)
    assert info["teachers"]["toy"]["top_k"] == 3
    assert info["masked_images"] == [{"row": 2, "key": "cat/0002.jpg", "status": "UNREADABLE"}]
    files = [p for p in store.path.rglob("*") if p.is_file()]
    local = [p for p in files if "receipts" in p.parts or p.name == "manifest.json"]
    assert info["bytes"] == sum(p.stat().st_size for p in set(files) - set(local))
    assert sum(info["bytes_per_crop"].values()) == pytest.approx(info["bytes"] / 60, abs=0.01)


def test_info_for_people_names_what_matters(tmp_path):
    store = fill_store(tmp_path / "s", masked=[2])
    root = seal(store).root
    _, out = invoke("info", store.path)
    for part in (root, "10 (N), 6 views each (M)", "1 masked", "toy", "top-3", "a crop", "sealed",
                 "cat/0002.jpg (unreadable)", "random-resized-crop"):  # fmt: skip
        assert part in out, part


def test_unfinished_stores_leave_with_3(tmp_path):
    store = LabelStore.create(tmp_path / "s", make_spec())
    store.write_block(0, make_block(store.spec, 0), "cpu")
    result = run("verify", store.path)
    assert result.returncode == 3 and "2 of 3 blocks missing" in result.stdout
    result = run("seal", store.path)
    assert result.returncode == 3 and result.stdout == ""
    assert result.stderr.count("\n") == 1 and "labelgen run" in result.stderr
    code, out = invoke("info", store.path, "--json")
    assert code == 0 and json.loads(out)["missing_blocks"] == 2


def test_damaged_stores_leave_with_1_and_the_file_s_name(tmp_path):
    store = fill_store(tmp_path / "s")
    seal(store)
    (store.path / "views/flip/c/0/0").write_bytes(b"")
    result = run("verify", store.path)
    assert result.returncode == 1 and "views/flip/c/0/0: size" in result.stdout


def test_no_store_is_a_one_line_error(tmp_path):
    result = run("info", tmp_path / "nowhere")
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.count("\n") == 1 and "not a label store" in result.stderr


def test_misuse_leaves_with_2():
    assert run("verify").returncode == 2


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom storage.cli import cli\n"
        "try: cli(['--help'])\nexcept SystemExit: pass\n"
        "bad = {'numpy', 'zarr', 'torch', 'PIL'} & set(sys.modules)\nassert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
