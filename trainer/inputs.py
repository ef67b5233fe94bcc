"""Finding and checking what a run is made of: device, label store, images, beton."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from storage import LabelStore
from storage.beton import SUFFIX
from storage.cli_common import resolve_data
from storage.errors import CorruptStore, IncompleteStore, StoreError, UsageError
from storage.images import ImageFolder
from storage.progress import Progress
from storage.remote import is_remote, open_any
from storage.verify import verify
from trainer.replay.beton import Beton, PackReport, pack
from trainer.replay.epoch import ReplayLoader
from trainer.sources import Source, open_source
from trainer.sources.hugging_face import PREFIX


def open_labels(location: str | Path) -> LabelStore:
    """Open a sealed store: a folder whose files are all there, or an address to read from.

    A remote store's manifest is checked when it is opened, its files as they are fetched.

    Raises:
        IncompleteStore: blocks are missing, or it was never sealed.
        CorruptStore: files are missing, truncated or foreign.
    """
    store = open_any(location)
    if is_remote(str(location)):
        return store
    missing = [] if store.is_sealed else store.missing_blocks()
    if missing:
        raise IncompleteStore(
            f"{location} is incomplete: {len(missing)} of {store.blocks} blocks are not labelled; "
            "run the same `labelgen run` again to finish it"
        )
    if not store.is_sealed:
        raise IncompleteStore(
            f"{location} is complete but not sealed: run `labelstore seal {location}`"
        )
    problems = verify(store.path, full=False).problems
    if problems:
        first = problems[0]
        raise CorruptStore(
            f"{location}: {first.path}: {first.detail} ({len(problems)} problems in all; see "
            f"`labelstore verify {location}`)"
        )
    return store


def choose_teacher(store: LabelStore, name: str | None) -> str:
    """Name of the labels to learn from: the only teacher, or the one asked for."""
    names = sorted(store.spec.teachers)
    if name is None and len(names) == 1:
        return names[0]
    if name in names:
        return str(name)
    asked = f"no labels of teacher {name!r}" if name else "labels of several teachers"
    raise UsageError(f"{store.path} holds {asked}: choose with --teacher {'|'.join(names)}")


def find_images(data: str | None, store: LabelStore | None) -> Path:
    """Image folder or beton: `--data`, else the store's local hint, else the default folder.

    Parquet files, tars and data sets (`trainer.sources`) are given back as they were given.

    Raises:
        UsageError: there is nothing at the place that was given or found.
    """
    if data is not None and (data.startswith(PREFIX) or "{" in data):
        return Path(data)
    if data is None and store is not None:
        hint = store.local_data_folder()
        if hint is not None:
            return hint
    return resolve_data(data)


def open_images(path: Path, cache: Path, workers: int, overwrite: bool = False) -> Beton:
    """A beton, or the beton packed from a source of images and kept at `cache`.

    A cached beton is used again while the source's names, sizes and times stay the same.
    """
    if path.suffix == SUFFIX and not path.is_dir():
        return Beton.open(path)
    source = open_source(str(path))
    stamp_path = cache.with_name(cache.name + ".stamp")
    stamp = source.stamp()
    if cache.exists() and stamp_path.exists() and not overwrite:
        if json.loads(stamp_path.read_text()).get("folder") == stamp:
            return Beton.open(cache)
        print(f"{path} has changed since it was packed: packing again", file=sys.stderr)
    elif cache.exists() and not stamp_path.exists():
        raise StoreError(
            f"{cache} is in the way of packing {path}: give it with --data {cache} to train on "
            "it, or move it away"
        )
    stamp_path.unlink(missing_ok=True)
    pack_with_progress(source, cache, workers, overwrite=True)
    stamp_path.write_text(json.dumps({"folder": stamp}))
    return Beton.open(cache)


def pack_with_progress(
    images: Source | ImageFolder, out: Path, workers: int, overwrite: bool, **options: Any
) -> PackReport:
    """`pack`, showing how far it is."""
    with Progress(len(images), "images", "packing") as progress:
        return pack(
            images, out, workers=workers, overwrite=overwrite, progress=progress.advance, **options
        )


def create_loader(kind: str, beton: Beton, **settings: Any) -> ReplayLoader:
    """The replay loader: `ffcv`, or `torch` (same pixels, slower, needs no FFCV)."""
    if kind == "torch":
        from trainer.replay.torch_loader import TorchReplayLoader

        return TorchReplayLoader(beton, **settings)
    try:
        from trainer.replay.ffcv_loader import FFCVReplayLoader
    except (ImportError, OSError) as error:
        raise UsageError(
            f"FFCV can't be loaded ({error}): run ./scripts/setup.sh, or use --loader torch"
        ) from error
    return FFCVReplayLoader(beton, **settings)
