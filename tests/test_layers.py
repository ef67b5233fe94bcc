"""The layers of docs/architecture.md, walked by the imports themselves."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("storage", "trainer", "labelgen", "transfer")
# What each package may import of ours; a dotted name allows that part alone.
ALLOWED = {
    "storage": ("storage",),
    "trainer": ("trainer", "storage"),
    "labelgen": ("labelgen", "storage", "trainer.models"),
    "transfer": ("transfer", "trainer", "storage"),
}
# Heavy libraries must not load before a command needs them.
HEAVY = ("torch", "torchvision", "timm", "zarr", "ffcv", "numba", "matplotlib", "PIL")


def imported_names(path):
    """(line, dotted name) of every absolute import in a file."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def within(name, allowed):
    return any(name == part or name.startswith(part + ".") for part in allowed)


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_lies_below_them(package):
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for line, name in imported_names(path)
        if name.split(".")[0] in PACKAGES and not within(name, ALLOWED[package])
    ]
    assert wrong == []


def test_storage_never_imports_torch():
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sorted((ROOT / "storage").rglob("*.py"))
        for line, name in imported_names(path)
        if name.split(".")[0] in ("torch", "torchvision", "timm")
    ]
    assert wrong == []


def test_no_pickle_can_be_loaded():
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                    arguments = {k.arg: ast.unparse(k.value) for k in node.keywords}
                    assert arguments.get("weights_only") == "True", f"{path}:{node.lineno}"
            names = {name for _, name in imported_names(path)} - {"pickle.UnpicklingError"}
            assert not {"pickle", "dill", "joblib"} & {name.split(".")[0] for name in names}, path


@pytest.mark.parametrize("command", ["labelgen", "storage", "trainer", "transfer"])
def test_help_loads_no_heavy_library(command):
    code = (
        f"import sys, {command}.cli as c\n"
        "try: c.cli(['--help'], standalone_mode=False)\n"
        "except SystemExit: pass\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert run.stderr.strip().endswith("[]"), run.stderr
    assert "Commands:" in run.stdout
