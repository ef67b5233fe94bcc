"""What a store keeps beside its labels, in lines for people."""

from __future__ import annotations

from collections.abc import Iterable

from storage.store import LabelStore
from storage.targets.heads import HeadSpec, head_settings
from storage.targets.record import TargetRecord


def target_lines(store: LabelStore, paths: Iterable[str] | None = None) -> list[str]:
    """A line for each target of a store; `paths`: of these alone."""
    targets = store.spec.targets
    return [
        f"target     {describe(targets[path])}"
        for path in sorted(targets if paths is None else paths)
    ]


def describe(record: TargetRecord) -> str:
    """One line: what is kept of how many views, in how many bytes, and what is lost by it."""
    size = f"{record.view_bytes:,} bytes a view, {record.views} views"
    losses = _heads_lost(record) if record.kind == "heads" else _energy(record)
    if losses:
        return f"{record.path}: {size}; {'; '.join(losses)}"
    parts = [f"{part.name} {list(part.shape)} {part.encoding}" for part in record.parts]
    return f"{record.path}: {', '.join(parts)}; {size}"


def _energy(record: TargetRecord) -> list[str]:
    energy = record.settings.get("energy")
    if energy is None or record.settings["basis_images"] < 1:
        return []
    crops = record.settings["basis_images"] * record.settings["basis_views"]
    rank = record.settings["rank"]
    return [f"{rank} components, by a basis of {crops:,} crops, keep {100 * energy:.2f} %"]


def _heads_lost(record: TargetRecord) -> list[str]:
    heads = head_settings(record).heads
    return [_head_lost(head) for head in heads if head.top_k is not None]


def _head_lost(head: HeadSpec) -> str:
    kept = head.top_k
    assert kept is not None
    errors = ", ".join(
        f"{100 * v:.2f} % at T = {t:g}"
        for t, v in zip(kept.temperatures, kept.variation, strict=True)
    )
    return (
        f"{head.name} keeps {kept.k} of {head.classes} logits: {errors} of the probability "
        f"misplaced ({kept.crops:,} crops)"
    )
