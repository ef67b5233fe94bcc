"""Matching class folders to a teacher's classes by name."""

from __future__ import annotations

import pytest

from storage.classes import map_classes


def test_folders_are_found_by_exact_name_in_any_order() -> None:
    found = map_classes(["n02", "n01"], ["n00", "n01", "n02"])
    assert found is not None
    assert found.tolist() == [2, 1]


def test_case_and_punctuation_are_forgiven_where_names_stay_distinct() -> None:
    found = map_classes(["red_fox", "T-Shirt"], ["tshirt", "Red Fox", "wolf"])
    assert found is not None
    assert found.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("folder", "teacher"),
    [
        ([], ["a", "b"]),
        (["a"], None),
        (["a", "c"], ["a", "b"]),  # one class is not the teacher's
        (["crane"], ["crane", "crane"]),  # which of the two?
        (["a_b", "ab"], ["ab", "x"]),  # two folders, one class
    ],
)
def test_half_known_or_ambiguous_names_give_no_mapping(
    folder: list[str], teacher: list[str] | None
) -> None:
    assert map_classes(folder, teacher) is None
