"""scripts/subset.py: the same subset for everyone, of the size asked for, nothing overwritten."""

import hashlib
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import write_folder

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
from subset import main


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "images", classes=3, per_class=6)


def files(out):
    return sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())


def test_a_seed_gives_everyone_the_same_images_and_other_seeds_others(folder, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        done = run("--data", folder, "--per-class", 2, "--seed", seed, "--out", tmp_path / name)
        assert done.exit_code == 0, done.output
    assert files(tmp_path / "a") == files(tmp_path / "b") != files(tmp_path / "c")
    keys = (tmp_path / "a" / "subset.txt").read_text().split()
    assert len(keys) == 6
    for key in keys:
        assert (tmp_path / "a" / key).read_bytes() == (folder / key).read_bytes()
    per_class = [key.split("/")[0] for key in keys]
    assert {per_class.count(name) for name in set(per_class)} == {2}


def test_the_list_is_ordered_by_a_hash_of_seed_and_key(folder, tmp_path):
    run("--data", folder, "--per-class", 1, "--seed", 7, "--out", tmp_path / "one")
    keys = (tmp_path / "one" / "subset.txt").read_text().split()
    for key in keys:
        mates = sorted((folder / key).parent.iterdir())
        ranks = {
            m.name: hashlib.sha256(f"7/{m.parent.name}/{m.name}".encode()).digest() for m in mates
        }
        assert min(ranks, key=ranks.__getitem__) == Path(key).name


def test_smaller_shares_are_subsets_of_larger_ones(folder, tmp_path):
    run("--data", folder, "--share", 0.34, "--out", tmp_path / "third")
    run("--data", folder, "--share", 0.67, "--out", tmp_path / "most", "--copy")
    third = set((tmp_path / "third" / "subset.txt").read_text().split())
    assert third < set((tmp_path / "most" / "subset.txt").read_text().split())
    assert not any(path.is_symlink() for path in (tmp_path / "most").rglob("*"))


def test_bad_requests_are_one_clear_line_and_overwrite_nothing(folder, tmp_path):
    assert "give one of" in run("--data", folder, "--out", tmp_path / "x").output
    few = run("--data", folder, "--per-class", 9, "--out", tmp_path / "x")
    assert few.exit_code == 1
    assert "has 6 images, 9 are asked for" in few.output
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("keep")
    full = run("--data", folder, "--per-class", 1, "--out", tmp_path / "full")
    assert full.exit_code == 1
    assert files(tmp_path / "full") == ["mine"]
