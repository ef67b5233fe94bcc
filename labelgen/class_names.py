"""Short readable names of classes: the words of a wnid, else what is known."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

WNID = re.compile(r"n\d{8}")


def class_names(classes: Sequence[str] | None, num_classes: int) -> list[str]:
    """A name for every class; `class 7` where a teacher has no names."""
    if classes is None:
        return [f"class {i}" for i in range(num_classes)]
    return [readable_name(name) for name in classes]


def readable_name(name: str) -> str:
    """The first word that WordNet has for a wnid (n01440764 is a tench); other names unchanged."""
    return _lemmas().get(name, name) if WNID.fullmatch(name) else name


@functools.cache
def _lemmas() -> dict[str, str]:
    """Words by wnid from timm's own table; it is read as a file, since timm loads torch."""
    found = importlib.util.find_spec("timm")
    for folder in (found.submodule_search_locations or ()) if found else ():
        path = Path(folder) / "data" / "_info" / "imagenet_synset_to_lemma.txt"
        if path.is_file():
            lines = path.read_text("utf-8").splitlines()
            pairs = (line.split("\t", 1) for line in lines if "\t" in line)
            return {wnid: words.split(",")[0].strip() for wnid, words in pairs}
    return {}
