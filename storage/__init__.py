"""Label stores: crops and soft labels on disk, as integers, checksummed and sealed.

Names are imported when first used, so that `import storage.errors` stays light. (`verify` is
not among them: the name belongs to its module, `from storage.verify import verify`.)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from storage.augment import Augment as Augment
    from storage.block import BlockData as BlockData
    from storage.codecs import SoftLabels as SoftLabels
    from storage.codecs import TopKCodec as TopKCodec
    from storage.codecs import TopKLabels as TopKLabels
    from storage.format import StoreSpec as StoreSpec
    from storage.manifest import Manifest as Manifest
    from storage.sealing import seal as seal
    from storage.store import LabelStore as LabelStore
    from storage.tables import ImageTable as ImageTable
    from storage.tables import Plane as Plane
    from storage.teacher_record import TeacherRecord as TeacherRecord
    from storage.verify import VerifyReport as VerifyReport
    from storage.views import CentreCrop as CentreCrop
    from storage.views import PaddedCrop as PaddedCrop
    from storage.views import RandomResizedCrop as RandomResizedCrop
    from storage.views import Views as Views
    from storage.views import sampler_from_json as sampler_from_json

_HOME = {
    "Augment": "augment",
    "BlockData": "block",
    "CentreCrop": "views",
    "ImageTable": "tables",
    "LabelStore": "store",
    "Manifest": "manifest",
    "PaddedCrop": "views",
    "Plane": "tables",
    "RandomResizedCrop": "views",
    "SoftLabels": "codecs",
    "StoreSpec": "format",
    "TeacherRecord": "teacher_record",
    "TopKCodec": "codecs",
    "TopKLabels": "codecs",
    "VerifyReport": "verify",
    "Views": "views",
    "sampler_from_json": "views",
    "seal": "sealing",
}

__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'storage' has no attribute {name!r}")
    return getattr(importlib.import_module(f"storage.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
