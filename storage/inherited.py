"""Certificates of stores that a store was made from.

A store made from others has no dense outputs to measure its labels on, so it states no certificate
of its own. The record of its origin has its ancestors': measured on *their* crops, before any
class was cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from storage.certificate import certificate_lines

MOST_GENERATIONS = 100
ROOT_DIGITS = 12


@dataclass(frozen=True)
class Inherited:
    """A certificate of an ancestor's labels.

    root: the ancestor's Merkle root. cut: whether labels have lost classes since.
    """

    root: str
    cut: bool
    certificate: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"measured_on": self.root, "classes_cut_since": self.cut, **self.certificate}


def inherited_certificates(attributes: Mapping[str, Any], teacher: str) -> list[Inherited]:
    """Certificates of the nearest ancestors that have one, from a store's root attributes.

    A record that can't be read has none (`labelstore origin` says what is wrong with it).
    """
    try:
        return list(_ancestors(attributes.get("origin"), teacher, False, 0))
    except (KeyError, TypeError, AttributeError):
        return []


def _ancestors(origin: Any, teacher: str, cut: bool, depth: int) -> Iterator[Inherited]:
    if not origin or depth > MOST_GENERATIONS:
        return
    if teacher in origin.get("adapted", {}):
        return  # what its labels lost says nothing of labels that were changed since
    cut = cut or teacher in origin.get("selection", {}).get("top_k", {})
    for parent in origin["parents"]:
        certificate = parent.get("certificates", {}).get(teacher)
        if certificate:
            certificate_lines(certificate)  # raises where it isn't one
            yield Inherited(str(parent["root"]), cut, certificate)
        else:
            yield from _ancestors(parent.get("origin"), teacher, cut, depth + 1)


def inherited_lines(found: Mapping[str, Any]) -> list[str]:
    """What `Inherited.to_json` gives, for people."""
    root = str(found["measured_on"])[:ROOT_DIGITS]
    what = (
        "whose labels keep more classes than these: theirs is not known"
        if found["classes_cut_since"]
        else "not on this store's own images and views"
    )
    return [f"measured on its ancestor {root}, {what}", *certificate_lines(found)]
