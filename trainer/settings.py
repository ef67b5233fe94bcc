"""A run's settings by dotted name: recipes (TOML), `--set a.b=c` and flags, one over the other.

Every name is a field of a configuration class of trainer.config; one that isn't is refused with
the nearest that is.
"""

from __future__ import annotations

import difflib
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from storage.errors import UsageError
from trainer.config import SECTIONS, RunChoices

RECIPES = Path(__file__).parent / "recipes"
TYPE_NAMES = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}


def known_settings() -> dict[str, Any]:
    """Type of every setting by dotted name: those of a run, then `section.field`."""
    known = _typed_fields(RunChoices)
    for section, config in SECTIONS.items():
        known |= {f"{section}.{name}": kind for name, kind in _typed_fields(config).items()}
    return known


def recipe_names() -> list[str]:
    """Recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def read_recipe(name: str) -> dict[str, Any]:
    """Settings of a recipe by dotted name: one of the package's, or a path to a TOML file.

    Raises:
        UsageError: no such recipe, TOML that can't be read, or a setting that doesn't exist.
    """
    path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    try:
        values = tomllib.loads(path.read_text())
    except FileNotFoundError:
        near = difflib.get_close_matches(name, recipe_names(), n=3, cutoff=0.3) or recipe_names()
        raise UsageError(
            f"there is no recipe {name!r}; nearest: {', '.join(near)}, or give a path to a .toml"
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"recipe {path} can't be read: {error}") from error
    return checked(_dotted(values), f"recipe {path}")


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """Settings of `a.b=c` texts; c is a TOML value, or else taken as a string.

    Raises:
        UsageError: a text without `=`, or a setting that doesn't exist.
    """
    values: dict[str, Any] = {}
    for text in assignments:
        name, separator, value = text.partition("=")
        if not separator:
            raise UsageError(f"--set {text!r} has no '='; expected NAME=VALUE, as optim.lr=0.2")
        values[name.strip()] = _toml_value(value.strip())
    return checked(values, "--set")


def checked(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values in the types that their settings have.

    Raises:
        UsageError: a name that is no setting (the nearest is given), or a value of another type.
    """
    known, found = known_settings(), {}
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
            hint = f"; nearest: {near[0]}" if near else ""
            raise UsageError(f"{where}: there is no setting {name!r}{hint}")
        found[name] = _as_type(name, value, known[name], where)
    return found


def section(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Fields of one section among dotted settings."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): v for key, v in values.items() if key.startswith(prefix)}


def _typed_fields(config: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(config)
    return {field.name: hints[field.name] for field in fields(config)}


def _dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _dotted(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _as_type(name: str, value: Any, kind: Any, where: str) -> Any:
    """The value as its setting's type: whole numbers serve as floats, lists as tuples."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    for option in options:
        origin = typing.get_origin(option) or option
        if origin is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if origin is tuple and isinstance(value, list):
            inner = typing.get_args(option)[0]
            return tuple(_as_type(name, item, inner, where) for item in value)
        if isinstance(origin, type) and isinstance(value, origin):
            if origin is int and isinstance(value, bool):
                continue
            return value
    names = " or ".join(_type_name(option) for option in options if option is not type(None))
    raise UsageError(f"{where}: {name} is {value!r}; expected {names}")


def _type_name(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        return f"a list of {typing.get_args(kind)[0].__name__}"
    return TYPE_NAMES[kind]
