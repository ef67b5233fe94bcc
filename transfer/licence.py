"""Whether a data set comes with a word on what may be done with it."""

from __future__ import annotations

from pathlib import Path

_BEGINNINGS = ("license", "licence", "copying", "copyright", "terms")


def licence_note(*folders: Path | str) -> str | None:
    """What to say of data whose folder has no licence file, nor the one above; None of others.

    A note, never a refusal: the licence may well stand on the data set's page alone.
    """
    lacking = [str(folder) for folder in dict.fromkeys(folders) if not _has_licence(Path(folder))]
    if not lacking:
        return None
    return (
        f"no licence file in {' and '.join(lacking)} or above: look up what the images may be "
        "used for before you hand on weights or figures"
    )


def _has_licence(folder: Path) -> bool:
    return any(
        file.name.lower().startswith(_BEGINNINGS)
        for place in (folder, folder.resolve().parent)
        if place.is_dir()
        for file in place.iterdir()
        if file.is_file()
    )
