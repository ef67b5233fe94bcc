"""Replay single crops through a loader: what `labelgen doctor` runs in a process of its own.

`python -m trainer.replay.canaries LOADER FOLDER` reads FOLDER/request.json (a list of views) and
FOLDER/images (an image file for each, in order), packs them and writes FOLDER/NNN.npy, uint8
[S, S, 3], for every crop that the loader could make.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from storage.augment import augment_from_json
from storage.errors import TeachonceError
from storage.images import ImageStatus, scan_folder
from trainer.replay.beton import Beton, pack
from trainer.replay.epoch import ReplayLoader

LOADERS = ("torch", "ffcv")


def replay(loader: str, folder: Path) -> None:
    """Answer the request in a folder.

    Raises:
        TeachonceError: the images can't be packed, or the loader fails.
    """
    views: list[dict[str, Any]] = json.loads((folder / "request.json").read_text())
    pack(scan_folder(folder / "images"), folder / "canaries.beton")
    beton = Beton.open(folder / "canaries.beton")
    groups: dict[str, list[int]] = defaultdict(list)  # a loader has one setting
    for row, view in enumerate(views):
        if beton.status[row] == ImageStatus.OK:
            settings = {
                name: view[name] for name in ("size", "interpolation", "padding", "augment")
            }
            groups[json.dumps(settings, sort_keys=True)].append(row)
    for text, rows in groups.items():
        settings = json.loads(text)
        settings["augment"] = augment_from_json(settings["augment"])
        made = _open(loader, beton, settings)
        for row, pixels in _pixels(made, beton, views, rows):
            np.save(folder / f"{row:03d}.npy", pixels)


def _open(loader: str, beton: Beton, settings: dict[str, Any]) -> ReplayLoader:
    if loader == "ffcv":
        from trainer.replay.ffcv_loader import FFCVReplayLoader

        return FFCVReplayLoader(beton, views=1, batch_images=8, workers=1, **settings)
    from trainer.replay.torch_loader import TorchReplayLoader

    return TorchReplayLoader(beton, views=1, batch_images=8, workers=0, **settings)


def _pixels(
    loader: ReplayLoader, beton: Beton, views: list[dict[str, Any]], rows: list[int]
) -> list[tuple[int, np.ndarray]]:
    """(row, uint8 [S, S, 3]) of the rows that the loader could make."""
    box = np.zeros((beton.num_rows, 1, 4), np.uint16)
    flip = np.zeros((beton.num_rows, 1), np.uint8)
    columns = loader.augment.columns if loader.augment else 0
    draw = np.zeros((beton.num_rows, 1, columns), np.int16) if columns else None
    for row in rows:
        box[row, 0], flip[row, 0] = views[row]["box"], views[row]["flip"]
        if draw is not None:
            draw[row, 0] = views[row]["draw"]
    found = []
    for batch in loader.epoch(np.array(rows, np.int64), box, flip, draw):
        images = batch.images.numpy()
        for i in np.flatnonzero(~batch.failed):
            found.append((int(batch.rows[i]), images[i, 0].copy()))
    return found


def main() -> None:
    """Entry point of `python -m trainer.replay.canaries`."""
    if len(sys.argv) != 3 or sys.argv[1] not in LOADERS:
        sys.exit("usage: python -m trainer.replay.canaries torch|ffcv FOLDER")
    try:
        replay(sys.argv[1], Path(sys.argv[2]))
    except TeachonceError as error:
        sys.exit(" ".join(str(error).split()))


if __name__ == "__main__":
    main()
