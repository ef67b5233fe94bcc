"""Libraries of the extra `transfer` under segmentation and detection, loaded when used."""

from __future__ import annotations

from types import ModuleType

from storage.extras import load_extra

_EXTRA = "transfer"


def segmentation_models() -> ModuleType:
    """segmentation-models-pytorch: encoders and decoders.

    Raises:
        UsageError: it isn't installed; so with the others.
    """
    return load_extra("segmentation_models_pytorch", "transfer segment", _EXTRA)


def segmentation_metrics() -> ModuleType:
    """torchmetrics.classification: mIoU and pixel accuracy."""
    return load_extra("torchmetrics.classification", "transfer segment", _EXTRA)


def coco_evaluation() -> ModuleType:
    """faster-coco-eval: COCO's annotations and average precision."""
    return load_extra("faster_coco_eval", "transfer detect", _EXTRA)
