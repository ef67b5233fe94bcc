"""Betons, made and opened: `pack` writes them, `storage.beton` reads them for both stages."""

from storage.beton import Beton, sidecar_path
from trainer.replay.packing import PackReport, pack

__all__ = ["Beton", "PackReport", "pack", "sidecar_path"]
