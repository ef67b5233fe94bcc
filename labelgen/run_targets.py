"""Targets of a run: planned before its store is made, and taken from the store when it is resumed.

A basis is data: fitted once, written with the store. Fitted again on another device it would differ
in its last bits, and so would all that is projected by it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labelgen.crop_worker import StoredViews
from labelgen.head_encodings import HeadEncoding, head_encoding
from labelgen.plan import Unit
from labelgen.target_options import (
    DEFAULT_FEATURE_RANK,
    FULL_RANK,
    TargetOptions,
    default_token_rank,
)
from labelgen.target_plans import TargetPlan
from labelgen.teacher import Teacher
from storage.errors import StoreMismatch
from storage.format import differences
from storage.images import ImageFolder
from storage.parents import Parent
from storage.store import ROOT_METADATA, LabelStore
from storage.targets.features import feature_settings
from storage.targets.heads import head_settings
from storage.targets.record import TargetRecord
from storage.targets.tokens import REMAINDER, token_settings

if TYPE_CHECKING:
    from labelgen.basis import CropSample


def plan_for_run(
    teacher: Teacher,
    out: Path,
    options: TargetOptions,
    sample: CropSample,
    num_views: int,
    stop: threading.Event | None = None,
) -> list[TargetPlan]:
    """Plans of a new store's targets, or those that the store at `out` has been begun with.

    Args:
        sample: crops that bases are fitted on, should the store be new. num_views: of the store.
    Raises:
        StoreMismatch: the store was begun with other targets; names every difference.
        UsageError, TeacherError, StoppedError: see labelgen.target_specs.plan_targets.
    """
    from labelgen.target_specs import plan_targets

    if (plans := _begun(out, teacher, options, num_views)) is not None:
        return plans
    return plan_targets(teacher, options, sample, num_views, stop)


def plan_for_addition(
    teacher: Teacher,
    parent: Parent,
    folder: ImageFolder,
    out: Path,
    options: TargetOptions,
    *,
    batch_size: int,
    workers: int,
    stored: Callable[[Unit], StoredViews],
    stop: threading.Event | None,
) -> list[TargetPlan]:
    """As `plan_for_run`, for targets of the views that a store has.

    Raises:
        StoreMismatch: as `plan_for_run`, or the store has such a target already.
    """
    from labelgen.basis import CropSample
    from labelgen.target_specs import plan_targets

    spec = parent.spec
    there = sorted(set(_paths(options, teacher)) & set(spec.targets))
    if there:
        raise StoreMismatch(
            f"{parent.store.path} has {there[0]} already: give the new one another name, as in "
            f"--{there[0].split('/')[0]} NAME"
        )
    plans = _begun(out, teacher, options, spec.num_views, known=spec.targets)
    if plans is not None:
        return plans
    sample = CropSample(
        folder=folder, sampler=spec.sampler, seed=spec.seed, num_views=spec.num_views,
        images=options.basis_images, batch_size=batch_size, workers=workers,
        interpolation=spec.pixel.interpolation, augment=spec.augment,
        first_view=parent.first_view, stored=stored,
    )  # fmt: skip
    return plan_targets(teacher, options, sample, spec.num_views, stop)


def write_shared(store: LabelStore, plans: Sequence[TargetPlan]) -> None:
    """Write what the views of each target share, before the first block."""
    for plan in plans:
        store.write_constants(plan.record.path, plan.constants, plan.files)


def stored_plans(store: LabelStore, paths: Sequence[str]) -> list[TargetPlan]:
    """Plans of targets that a store has, with the constants and files that lie in it."""
    records = [store.spec.targets[path] for path in paths]
    return [
        TargetPlan(
            record,
            {name: np.array(store.read_constant(record.path, name)) for name in record.constants},
            {name: store.target_file(record.path, name) for name in record.files},
        )
        for record in records
    ]


def _begun(
    out: Path,
    teacher: Teacher,
    options: TargetOptions,
    num_views: int,
    known: Mapping[str, TargetRecord] | None = None,
) -> list[TargetPlan] | None:
    """Plans of the store at `out`; None where there is none yet, or nothing is in it.

    Args:
        known: targets that it has from elsewhere.
    """
    if not (out / ROOT_METADATA).is_file():
        return None
    store = LabelStore.open(out)
    records = {path: r for path, r in store.spec.targets.items() if path not in (known or {})}
    found = _request_differences(options, teacher, num_views, records)
    if found:
        raise StoreMismatch(
            f"{out} was made with other targets than asked for: {'; '.join(found)}. Use the "
            "store's settings, choose another --out, or replace it with --overwrite"
        )
    if set(store.missing_constants()) & set(records):  # killed before they were whole
        return None
    return stored_plans(store, sorted(records))


def _request_differences(
    options: TargetOptions,
    teacher: Teacher,
    num_views: int,
    records: Mapping[str, TargetRecord],
) -> list[str]:
    """Every setting of the request that a store's targets weren't made with."""
    asked = _paths(options, teacher)
    if sorted(asked) != sorted(records):
        return [f"targets are {', '.join(sorted(asked))}, not {', '.join(sorted(records))}"]
    found = []
    for path, kind in asked.items():
        record = records[path]
        ours = {"views": options.views_of(kind, num_views), **_ASKED[kind](options, record)}
        theirs = {"views": record.views, **_HAD[kind](record)}
        found += differences(ours, theirs, f"{path}.")
    return found


def _paths(options: TargetOptions, teacher: Teacher) -> dict[str, str]:
    """Kind of every target asked for, by its path."""
    names = {kind: getattr(options, kind) or teacher.spec.name for kind in options.wanted}
    return {f"{kind}/{name}": kind for kind, name in names.items()}


def _asked_features(options: TargetOptions, record: TargetRecord) -> dict[str, Any]:
    scaled = options.feature_space == "y"
    width = feature_settings(record).width
    return {
        "rank": options.feature_rank or min(DEFAULT_FEATURE_RANK, width),
        "space": options.feature_space,
        "temperature": options.power_temperature if scaled else None,
        "power": options.power if scaled else None,
    }


def _had_features(record: TargetRecord) -> dict[str, Any]:
    settings = feature_settings(record)
    return {name: getattr(settings, name) for name in ("rank", "space", "temperature", "power")}


def _asked_heads(options: TargetOptions, record: TargetRecord) -> dict[str, Any]:
    asked = {
        head.name: str(head_encoding(options, head.width, head.classes))
        for head in head_settings(record).heads
    }
    return {"rotations": options.rotations, "encoding": asked}


def _had_heads(record: TargetRecord) -> dict[str, Any]:
    settings = head_settings(record)
    had = {
        head.name: str(
            HeadEncoding(head.encoding, head.stored, head.top_k.k if head.top_k else None)
        )
        for head in settings.heads
    }
    return {"rotations": settings.rotations, "encoding": had}


def _asked_tokens(options: TargetOptions, record: TargetRecord) -> dict[str, Any]:
    width = token_settings(record).width
    rank = width if options.token_rank == FULL_RANK else options.token_rank
    return {
        "rank": rank or default_token_rank(width), "encoding": options.token_encoding,
        "tail": options.tail,
    }  # fmt: skip


def _had_tokens(record: TargetRecord) -> dict[str, Any]:
    settings = token_settings(record)
    return {
        "rank": settings.rank, "encoding": record.part(REMAINDER).encoding, "tail": settings.tail,
    }  # fmt: skip


def _asked_dense(options: TargetOptions, record: TargetRecord) -> dict[str, Any]:
    return {"encoding": options.dense_encoding}


def _had_dense(record: TargetRecord) -> dict[str, Any]:
    return {"encoding": record.parts[0].encoding}


_ASKED: dict[str, Callable[[TargetOptions, TargetRecord], dict[str, Any]]] = {
    "features": _asked_features,
    "heads": _asked_heads,
    "tokens": _asked_tokens,
    "dense": _asked_dense,
}
_HAD: dict[str, Callable[[TargetRecord], dict[str, Any]]] = {
    "features": _had_features,
    "heads": _had_heads,
    "tokens": _had_tokens,
    "dense": _had_dense,
}
