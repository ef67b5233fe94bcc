"""Which detectors there are, and the published settings by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trainer import step_config
from trainer.checks import require

DETECTORS = ("faster-rcnn", "retinanet", "fcos")
HEADS = ("fpn", "c4")
NORMS = (*step_config.NORMS, "frozen")
GROUPS = 32  # of FCOS's group norms
COCO_SIDES, VOC_SIDES = tuple(range(640, 801, 32)), tuple(range(480, 801, 32))


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """Which detector.

    Attributes:
        norm: batch norms of the student: of each process's part of every `batch`, of all of it
            (`sync`, see `trainer.norms.with_norm`), or `frozen` as they came.
        freeze_stages: 0 to 3; the stem and that many stages don't learn, norms included.
        width: channels of the pyramid. anchor: side in pixels of the smallest anchors.
    """

    detector: str = "faster-rcnn"
    head: str = "fpn"
    norm: str = "batch"
    freeze_stages: int = 0
    width: int = 256
    anchor: int = 32

    def __post_init__(self) -> None:
        for name, known in (("detector", DETECTORS), ("head", HEADS), ("norm", NORMS)):
            value = getattr(self, name)
            require(value in known, f"--{name} is {value!r}; expected one of {', '.join(known)}")
        require(0 <= self.freeze_stages <= 3, f"--freeze-stages is {self.freeze_stages}; 0 to 3")
        require(
            self.width % GROUPS == 0 and GROUPS <= self.width <= 1024,
            f"--width is {self.width}; expected a multiple of {GROUPS} up to 1024",
        )
        require(
            self.width > GROUPS or self.detector != "fcos",
            f"--width is {self.width}; FCOS normalises {GROUPS} groups: expected more channels",
        )
        require(4 <= self.anchor <= 512, f"--anchor is {self.anchor}; expected 4 to 512 pixels")
        require(
            self.head == "fpn" or self.detector == "faster-rcnn",
            f"--head c4 is Faster R-CNN's; {self.detector} takes --head fpn",
        )


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What is published. iterations None: `epochs` count; warmup in iterations.

    falls: shares of the run after which the rate falls to a tenth.
    """

    head: str = "fpn"
    norm: str = "batch"
    iterations: int | None = None
    epochs: int = 12
    falls: tuple[float, ...] = (2 / 3, 8 / 9)
    warmup: int = 1000
    short_sides: tuple[int, ...] = COCO_SIDES


_COCO: dict[str, Any] = {"iterations": 90_000}
_VOC: dict[str, Any] = {"iterations": 18_000, "warmup": 100, "short_sides": VOC_SIDES}
PRESETS = {
    "short": Preset(warmup=100, short_sides=VOC_SIDES),
    "coco-1x": Preset(**_COCO),
    "kdep-coco-r18": Preset(**_COCO, head="c4", norm="sync"),
    "kdep-coco-mnv2": Preset(**_COCO, norm="frozen"),
    "kdep-voc-r18": Preset(**_VOC, head="c4", norm="sync"),
    "kdep-voc-mnv2": Preset(**_VOC, norm="frozen"),
}
