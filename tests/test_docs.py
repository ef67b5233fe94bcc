"""The documentation is run: commands parse, Python examples execute, links lead somewhere."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import click
import pytest
from conftest import write_folder
from training import make_store

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
TORCHRUN = re.compile(r"^torchrun .*?-m (\w+)\.cli\b")
PROGRAMS = ("labelgen", "labelstore", "trainer", "transfer")


def group(program):
    """The click group behind a program's name."""
    package = "storage" if program == "labelstore" else program
    return import_module(f"{package}.cli").cli


def blocks(language):
    for page in PAGES:
        for found, text in BLOCK.findall(page.read_text()):
            if found == language:
                yield pytest.param(text, id=f"{page.name}:{text.strip().splitlines()[0][:40]}")


def commands():
    """Every line of a console block that runs one of our programs, continuations joined."""
    for page in PAGES:
        for language, text in BLOCK.findall(page.read_text()):
            if language not in ("console", "bash"):
                continue
            for line in text.replace("\\\n", " ").splitlines():
                line = TORCHRUN.sub(r"\1", line.removeprefix("$ ").strip())
                if line.split(" ")[0] in PROGRAMS:
                    yield pytest.param(line, id=f"{page.name}:{line[:50]}")


@pytest.mark.parametrize("line", list(commands()))
def test_a_documented_command_parses(line):
    program, *words = shlex.split(line, comments=True)
    command = group(program)
    context = click.Context(command, info_name=program)
    while isinstance(command, click.Group):
        name, command, words = command.resolve_command(context, words)
        if "--help" in words:
            return
    try:
        command.make_context(name, words, parent=context)  # raises on unknown options
    except click.BadParameter as error:  # the files that an example names need not be here
        if "No such file" not in error.message and "does not exist" not in error.message:
            raise


@pytest.mark.parametrize("text", list(blocks("python")))
def test_a_python_example_runs(text, tmp_path, monkeypatch):
    write_folder(tmp_path / "images", classes=3, per_class=4)
    make_store(tmp_path / "images", tmp_path / "store.zarr")
    (tmp_path / "store.safetensors").rename(tmp_path / "teacher.safetensors")
    monkeypatch.chdir(tmp_path)
    exec(compile(text, "example", "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_of_the_project_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_command_is_named_in_the_documentation():
    text = "\n".join(page.read_text() for page in PAGES)
    for program in PROGRAMS:
        for name in group(program).commands:
            assert f"{program} {name}" in text
