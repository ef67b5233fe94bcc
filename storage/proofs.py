"""Merkle proofs over manifest lines: some files of a sealed store, shown to be under its root.

The tree is RFC 6962's (`manifest.merkle_root`). A proof of several leaves holds one hash for each
largest subtree without any of them, from left to right (depth first).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from storage.errors import CorruptStore

Span = tuple[int, int]  # leaves first .. last - 1 of one subtree


class HashTree:
    """Hashes of subtrees by the leaves they span: all of them, or those that a proof tells."""

    def __init__(self, leaves: int, nodes: dict[Span, bytes]) -> None:
        self.leaves = leaves
        self._nodes = nodes

    @classmethod
    def from_lines(cls, lines: Sequence[str]) -> HashTree:
        """The whole tree over sorted manifest lines, at least one."""
        known = {row: leaf_hash(line) for row, line in enumerate(lines)}
        return cls(len(lines), _collect(len(lines), known, []))

    @classmethod
    def from_proof(cls, leaves: int, known: Mapping[int, bytes], hashes: list[bytes]) -> HashTree:
        """The part of a tree that a proof tells.

        Args:
            known: hash of each proven leaf by its row.
            hashes: what `prove` gave for exactly these rows.
        Raises:
            CorruptStore: a row outside the tree, or too few or too many hashes.
        """
        if not known or min(known) < 0 or max(known) >= leaves:
            raise CorruptStore(f"a proof names files outside the {leaves} of its store")
        return cls(leaves, _collect(leaves, known, list(hashes)))

    @property
    def root(self) -> str:
        """Hex Merkle root."""
        return self._nodes[0, self.leaves].hex()

    def prove(self, rows: Iterable[int]) -> list[bytes]:
        """Hashes that lead from these leaves to the root; the leaves must be known here."""
        wanted = sorted(rows)
        found: list[bytes] = []

        def walk(first: int, last: int, begin: int, end: int) -> None:
            if begin == end:
                found.append(self._nodes[first, last])
            elif last - first > 1:
                middle = first + _split(last - first)
                border = begin
                while border < end and wanted[border] < middle:
                    border += 1
                walk(first, middle, begin, border)
                walk(middle, last, border, end)

        walk(0, self.leaves, 0, len(wanted))
        return found


def leaf_hash(line: str) -> bytes:
    """Hash of one manifest line."""
    return hashlib.sha256(b"\0" + line.encode()).digest()


def manifest_line(name: str, entry: tuple[int, str]) -> str:
    """A file's line under the root."""
    return f"{name} {entry[0]} {entry[1]}"


def _collect(leaves: int, known: Mapping[int, bytes], hashes: list[bytes]) -> dict[Span, bytes]:
    """Hashes of all subtrees that hold a known leaf, and those that `hashes` gives in order."""
    nodes: dict[Span, bytes] = {}
    rows = sorted(known)
    given = iter(hashes)

    def walk(first: int, last: int, inside: Sequence[int]) -> bytes:
        if not inside:
            value = next(given, None)
            if value is None:
                raise CorruptStore("a proof has too few hashes")
        elif last - first == 1:
            value = known[first]
        else:
            middle = first + _split(last - first)
            left = [row for row in inside if row < middle]
            pair = walk(first, middle, left) + walk(middle, last, inside[len(left) :])
            value = hashlib.sha256(b"\1" + pair).digest()
        nodes[first, last] = value
        return value

    walk(0, leaves, rows)
    if next(given, None) is not None:
        raise CorruptStore("a proof has too many hashes")
    return nodes


def _split(leaves: int) -> int:
    """Leaves of the left subtree: the largest power of two below `leaves`."""
    return 1 << ((leaves - 1).bit_length() - 1)
