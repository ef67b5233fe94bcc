"""Which source a location is: the one place that knows all kinds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from storage.errors import UsageError
from storage.images import scan_folder
from trainer.sources.base import Source
from trainer.sources.folders import FolderSource
from trainer.sources.hugging_face import PREFIX, SAVED, HubSource, parse
from trainer.sources.parquet import ParquetSource
from trainer.sources.tars import TarSource, expand

SPLITS = ("dev", "test", "train", "valid")  # how names of their files begin


def open_source(
    location: str, label: str | None = None, names: Sequence[str] | None = None
) -> Source:
    """The images at a location.

    Args:
        location: an image folder; a parquet file, or a folder of them; a WebDataset tar, a pattern
            of tars (`train-{0000..0146}.tar`) or a folder of them; `hf:PATH[:split]` or
            `hf:org/name[:split]`.
        label: column of the labels, of parquet files and data sets.
        names: of the classes, of sources whose labels are numbers without names.
    Raises:
        UsageError: nothing there, or nothing that can be packed.
        StoreError: a file is damaged.
    """
    if location.startswith(PREFIX):
        place, split = parse(location)
        folder = Path(place)
        saved = any((folder / name).is_file() for name in SAVED)
        if not saved and (files := _files(folder, ".parquet", split)):
            return ParquetSource(location, files, label, names)
        return HubSource(location, label, names)
    path = Path(location)
    if path.suffix == ".tar" or ("{" in location and not path.exists()):
        return _without_column(TarSource(location, expand(location), names), label)
    if path.suffix == ".parquet" and path.is_file():
        return ParquetSource(location, [path], label, names)
    if files := _files(path, ".parquet"):
        return ParquetSource(location, files, label, names)
    if files := _files(path, ".tar"):
        return _without_column(TarSource(location, files, names), label)
    if names is not None:
        raise UsageError(f"{location}: classes of a folder are named by its folders, leave out "
                         "--class-names")  # fmt: skip
    if path.exists() and not path.is_dir() and path.suffix != ".beton":
        raise UsageError(
            f"{location} can't be packed: expected a folder, .parquet, .tar or hf:DATASET"
        )
    return _without_column(FolderSource(scan_folder(path)), label)


def _without_column(source: Source, label: str | None) -> Source:
    if label is not None:
        raise UsageError(f"{source.location} has no columns: leave out --label-column {label}")
    return source


def _files(folder: Path, suffix: str, split: str | None = None) -> list[Path]:
    """Files of a folder or of its `data`, sorted by name; of a split those that begin with it.

    Raises:
        UsageError: files of several splits, or none of the one asked for.
    """
    files = sorted([*folder.glob(f"*{suffix}"), *(folder / "data").glob(f"*{suffix}")])
    splits = sorted({name for path in files for name in SPLITS if path.name.startswith(name)})
    if split is None and len(splits) > 1:
        raise UsageError(
            f"{folder} has the splits {', '.join(splits)}: choose one with hf:{folder}:{splits[0]}"
        )
    if split is None or not files:
        return files
    own = [path for path in files if path.name.startswith(split)]
    if not own:
        raise UsageError(f"{folder} has no files of the split {split!r}, only {files[0].name} ...")
    return own
