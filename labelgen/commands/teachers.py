"""`labelgen teachers`."""

from __future__ import annotations

from typing import Any

import click

from storage.cli_common import json_option, print_result

_GRAMMAR = """\
also: tv:NAME[@WEIGHTS] (torchvision), timm:NAME[.TAG], hf-hub:OWNER/REPO[@REVISION] and
local-dir:FOLDER (timm models), file:weights.safetensors (--arch tv:NAME, timm:NAME or
resnet20 ...), ensemble:A+B (mean of probabilities); --weights FILE replaces any weights;
labelgen teachers NAME describes one"""


@click.command()
@click.argument("name", required=False)
@json_option
def teachers(name: str | None, as_json: bool) -> None:
    """List the short names of teachers, or those that hold NAME, or describe the teacher NAME."""
    from labelgen.grammar import ALIASES

    shown = {
        alias: full
        for alias, full in ALIASES.items()
        if name is None or name in alias or name in full
    }
    if name is not None and (name in ALIASES or not shown):
        described = _describe(name)
        lines = [f"{key.replace('_', ' '):<14} {_shown(value)}" for key, value in described.items()]
        print_result(described, as_json, "\n".join(lines))
        return
    rows = [{"alias": alias, **_row(full)} for alias, full in shown.items()]
    report = {"aliases": shown, "teachers": rows}
    print_result(report, as_json, f"{_table(rows)}\n\n{_GRAMMAR}")


_HEADS = {"alias": "alias", "teacher": "teacher", "input_size": "pixels", "parameters": "params",
          "licence": "licence"}  # fmt: skip


def _table(rows: list[dict[str, Any]]) -> str:
    table = [list(_HEADS.values())]
    table += [[_shown(row[key], short=True) for key in _HEADS] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    padded = ([f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)]
              for line in table)  # fmt: skip
    return "\n".join("  ".join(line).rstrip() for line in padded)


def _row(full: str) -> dict[str, Any]:
    """What the list says of one teacher."""
    from labelgen.teachers import count_parameters, resolve

    spec = resolve(full)
    return {
        "teacher": spec.canonical,
        "library": spec.library,
        "weights": spec.weights,
        "input_size": spec.input_size,
        "parameters": count_parameters(spec),
        "licence": spec.licence,
    }


def _describe(name: str) -> dict[str, Any]:
    """All that is known of a teacher before its weights are loaded."""
    from labelgen.teachers import count_parameters, resolve
    from storage.images import class_order_hash

    spec = resolve(name)
    return {
        "teacher": spec.canonical,
        "library": spec.library,
        "version": spec.version,
        "architecture": spec.arch,
        "revision": spec.revision,
        "licence": spec.licence,
        "parameters": count_parameters(spec),
        "input_size": spec.input_size,
        "mean": list(spec.mean),
        "std": list(spec.std),
        "channel_order": spec.channel_order,
        "interpolation": spec.interpolation,
        "classes": spec.num_classes,
        "class_offset": spec.class_offset,
        "class_order": class_order_hash(spec.classes) if spec.classes else None,
        "members": [member.canonical for member in spec.members],
        "digest": "unknown until the weights are loaded",
    }


def _shown(value: object, short: bool = False) -> str:
    """One value for people; `short` counts in millions."""
    if value is None:
        return "unknown"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if short and isinstance(value, int) and value >= 100_000:
        return f"{value / 1e6:.1f} M"
    return f"{value:,}" if isinstance(value, int) else str(value)
