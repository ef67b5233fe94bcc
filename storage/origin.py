"""Where a store that was made from others comes from, and the proof of it.

The record lies in the root group's attributes, so the store's own Merkle root covers it. For every
file that was copied byte for byte it holds a Merkle proof against the root of the store that it was
copied from, and against that store's own ancestors: a subset of a subset still verifies against the
root that was published first. Nothing but the roots has to be known to check it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from storage.errors import CorruptStore, StoreError
from storage.format import ORIGIN
from storage.layout import ArrayLayout, array_layouts
from storage.manifest import read_manifest
from storage.parents import Parent
from storage.proofs import HashTree, leaf_hash, manifest_line
from storage.store import LabelStore

ORIGIN_VERSION = 1

Copied = Mapping[str, tuple[int, str]]  # own path -> (number of the parent, path there)


def origin_record(
    kind: str, parents: Sequence[Parent], copied: Copied, details: dict[str, Any]
) -> dict[str, Any]:
    """The record of a store made from `parents`.

    Args:
        kind: what was done: "subset", "merge-images", ...
        copied: files that are a parent's, byte for byte.
        details: what else the reader should know (the selection, the error it brings).
    """
    ancestors: list[dict[str, Any]] = []
    for number, parent in enumerate(parents):
        pairs = sorted((own, theirs) for own, (whose, theirs) in copied.items() if whose == number)
        if pairs:
            ancestors += _ancestors(parent, pairs)
    return {
        "version": ORIGIN_VERSION,
        "kind": kind,
        **details,
        "parents": [parent.summary() for parent in parents],
        "ancestors": ancestors,
    }


def _ancestors(parent: Parent, pairs: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Proofs of copied files against a parent's root and its ancestors'."""
    entries = parent.manifest.objects
    names = sorted(entries)
    row_of = {name: row for row, name in enumerate(names)}
    tree = HashTree.from_lines([manifest_line(name, entries[name]) for name in names])
    found = [_proof(tree, [(row_of[theirs], own, theirs) for own, theirs in pairs])]
    for older in parent.store.attributes.get(ORIGIN, {}).get("ancestors", []):
        try:
            there = {name: (row, oldest) for row, name, oldest in older["objects"]}
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptStore(
                f"{parent.store.path}: the record of its origin can't be read ({error!r})"
            ) from error
        kept = [(*there[theirs], own) for own, theirs in pairs if theirs in there]
        if kept:
            tree = _rebuild(older, entries)
            found.append(_proof(tree, [(row, own, oldest) for row, oldest, own in kept]))
    return found


def _proof(tree: HashTree, objects: list[tuple[int, str, str]]) -> dict[str, Any]:
    hashes = tree.prove({row for row, _, _ in objects})
    return {
        "root": tree.root,
        "leaves": tree.leaves,
        "objects": [list(item) for item in sorted(objects)],
        "hashes": [value.hex() for value in hashes],
    }


def _rebuild(ancestor: dict[str, Any], entries: Mapping[str, tuple[int, str]]) -> HashTree:
    """The part of an ancestor's tree that its proof tells, from the files' own hashes.

    Raises:
        CorruptStore: the record isn't one, or names a file that the store doesn't have.
    """
    try:
        known: dict[int, bytes] = {}
        for row, own, theirs in ancestor["objects"]:
            leaf = leaf_hash(manifest_line(theirs, entries[own]))
            if known.setdefault(int(row), leaf) != leaf:
                raise CorruptStore(f"{own} is proven by another file's place in the tree")
        hashes = [bytes.fromhex(value) for value in ancestor["hashes"]]
        return HashTree.from_proof(int(ancestor["leaves"]), known, hashes)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CorruptStore(f"the store's record of its origin can't be read ({error!r})") from error


@dataclass
class OriginReport:
    """What `check_origin` found.

    proven: for each ancestor's root, how many of the store's files are that store's, and their
        bytes; problems: what does not hold.
    """

    kind: str | None
    objects: int
    bytes: int
    proven: dict[str, dict[str, int]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def check_origin(store: LabelStore, root: str | None = None) -> OriginReport:
    """Check the proofs of a sealed store against the roots they name.

    Says nothing about the files on disk themselves: `verify(full=True)` compares those with the
    manifest that is used here.

    Args:
        root: hex Merkle root that files of the store must be proven to be under; None: any.
    Raises:
        StoreError: the store isn't sealed.
    """
    if not store.is_sealed:
        raise StoreError(f"{store.path} is not sealed: close it with `labelstore seal` first")
    manifest = read_manifest(store.path)
    record = store.attributes.get(ORIGIN)
    report = OriginReport(
        kind=record.get("kind") if isinstance(record, dict) else None,
        objects=len(manifest.objects),
        bytes=sum(manifest.sizes().values()),
    )
    files: dict[str, set[str]] = {}
    if root == manifest.root:
        files[manifest.root] = set(manifest.objects)
    layouts = array_layouts(store.spec)
    ancestors = record.get("ancestors", []) if isinstance(record, dict) else []
    for ancestor in ancestors if isinstance(ancestors, list) else [{}]:
        try:
            found = _rebuild(ancestor, manifest.objects).root
            if found != ancestor["root"]:
                raise CorruptStore(f"the proof against {ancestor['root']} leads to {found}")
            _check_places(ancestor["objects"], layouts)
        except CorruptStore as error:
            report.problems.append(str(error))
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            report.problems.append(f"the store's record of its origin can't be read ({error!r})")
        else:
            files.setdefault(found, set()).update(own for _, own, _ in ancestor["objects"])
    report.proven = {
        found: {"objects": len(own), "bytes": sum(manifest.objects[name][0] for name in own)}
        for found, own in files.items()
    }
    if root is not None and root not in report.proven:
        report.problems.append(f"no file of the store is proven to be under {root}")
    return report


def origin_json(store: LabelStore, report: OriginReport) -> dict[str, Any]:
    """Plain values for the command line: the record without its proofs, and what they prove."""
    record = store.attributes.get(ORIGIN)
    record = record if isinstance(record, dict) else {}
    return {
        "ok": not report.problems,
        "root": read_manifest(store.path).root,
        "objects": report.objects,
        "bytes": report.bytes,
        "origin": {name: value for name, value in record.items() if name != "ancestors"} or None,
        "proven": report.proven,
        "problems": report.problems,
    }


def _check_places(
    objects: Sequence[tuple[int, str, str]], layouts: Mapping[str, ArrayLayout]
) -> None:
    """Copied files lie where they belong together.

    All files of one block come from one block of the ancestor, all segments are moved by the same
    number, and arrays keep their names: otherwise true files could be put beside wrong images.
    """
    blocks: dict[str, str] = {}
    moved: set[int] = set()
    for _, own, theirs in objects:
        here, there = own.split("/c/", 1), theirs.split("/c/", 1)
        if here[0] != there[0] or len(here) != len(there):
            raise CorruptStore(f"{own} is proven to be {theirs}, which is another array")
        if len(here) == 1 or here[0] not in layouts:  # of the whole store
            continue
        ours, older = here[1].split("/"), there[1].split("/")
        if blocks.setdefault(ours[0], older[0]) != older[0]:
            raise CorruptStore(f"block {ours[0]} is put together from blocks of other images")
        if layouts[here[0]].shard:
            moved.add(int(older[1]) - int(ours[1]))
    if len(moved) > 1 or len(set(blocks.values())) < len(blocks):
        raise CorruptStore("views or blocks of the ancestor are put together out of their order")
