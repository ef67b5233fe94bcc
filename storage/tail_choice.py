"""How the tail of a store's labels is best read: by the image's mean tail, or spread evenly.

A mean tail of few views is a poor one: below some twenty views an image an even tail is nearer the
teacher's output (docs/choosing.md). A store has measured which one is on its own crops, so what is
chosen is a function of what the store states, and of nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from storage.dictionary import DictionaryCodec
from storage.inherited import inherited_certificates
from storage.store import LabelStore

MEAN, EVEN = "mean", "even"
LABEL_TEMPERATURE = "1"  # of labels as they are learnt from


@dataclass(frozen=True)
class TailChoice:
    """tail: `mean` or `even`; why: one line for people, empty where there was no choice."""

    tail: str
    why: str = ""


def choose_tail(store: LabelStore, teacher: str) -> TailChoice:
    """The reading that the store's certificate says is nearer the teacher's dense output.

    A store made from others goes by its nearest ancestors' certificates, and takes the mean tail
    only if all of them do; one without any takes the even tail, as FKD does.
    """
    record = store.spec.teachers[teacher]
    if not isinstance(record.codec, DictionaryCodec) or not record.codec.spread_classes:
        return TailChoice(EVEN)
    own = record.measured.get("certificate")
    known = [found.certificate for found in inherited_certificates(store.attributes, teacher)]
    measured = [found for one in ([own] if own else known) if (found := _measured(one))]
    if not measured:
        return TailChoice(
            EVEN, "labels are read with an even tail: nothing says that the store's mean tails are "
            "nearer"
        )  # fmt: skip
    tail = MEAN if all(mean < even for mean, even in measured) else EVEN
    mean, even = max(measured, key=lambda pair: pair[0] - pair[1])
    numbers = f"KL {mean:.4f} with the image's mean tail, {even:.4f} with an even one"
    whose = "on the store's own sample" if own else "on its ancestors' sample"
    return TailChoice(tail, f"labels are read with the {tail} tail: {numbers}, {whose}")


def _measured(certificate: Mapping[str, Any]) -> tuple[float, float] | None:
    """Mean KL(dense || decoded) with the mean and with the even tail; None where not measured."""
    found = certificate.get("kl", {}).get(LABEL_TEMPERATURE, {})
    if MEAN not in found or EVEN not in found:
        return None
    return float(found[MEAN]["mean"]), float(found[EVEN]["mean"])
