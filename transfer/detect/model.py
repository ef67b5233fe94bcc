"""torchvision's detectors on a student.

FPN (Lin et al. 2017, arXiv:1612.03144) on the student's maps with strides 4 to 32, under Faster
R-CNN (arXiv:1506.01497), RetinaNet (arXiv:1708.02002) or FCOS (arXiv:1904.01355); or "C4": Faster
R-CNN on the map with stride 16, whose head is the student's own last stage.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from trainer.config import StudentConfig
from transfer.detect.maps import STRIDES, Maps, find_maps, last_stage, module_root
from transfer.detect.presets import DetectorConfig

RATIOS = (0.5, 1.0, 2.0)  # height / width of anchors
FINEST = {"faster-rcnn": 4, "retinanet": 8, "fcos": 8}  # stride of the first map that is used
SURE, DETECTIONS = 0.05, 100  # boxes handed on: from this score, at most so many a photo
LEVELS = 5
POOLED, SAMPLES = 7, 2  # of RoI align: side, points a bin and axis


@dataclass(frozen=True, eq=False)
class Detector:
    """A detector and what of it is the student's.

    Attributes:
        model: takes float [3, H, W] photos in 0 to 1, each at its final size.
        used: its tensors that are the student's: name in the student -> name here.
        left_out: names of the student's tensors that it has no use for.
    """

    model: nn.Module
    used: dict[str, str]
    left_out: tuple[str, ...]


class Pyramid(nn.Module):
    """The student's maps through an FPN: [B, 3, H, W] -> {name: [B, out_channels, h, w]}."""

    def __init__(self, body: nn.Module, fpn: nn.Module, out_channels: int) -> None:
        super().__init__()
        self.body, self.fpn, self.out_channels = body, fpn, out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Finest map first."""
        return self.fpn(self.body(images))


class Prepared(GeneralizedRCNNTransform):
    """Normalises and pads; photos come at their final size, in training and in evaluation."""

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Both as they are."""
        return image, target


def build_detector(
    config: DetectorConfig, network: nn.Module, student: StudentConfig, num_classes: int, seed: int
) -> Detector:
    """A detector on a student's network; what is new is drawn from `seed`.

    Args:
        network: the student, whose modules become part of the detector.
        num_classes: without the background.
    Raises:
        UsageError: the student has no such stages.
    """
    state = network.state_dict(keep_vars=True)  # kept, or a freed tensor's id might come again
    theirs = {id(tensor): name for name, tensor in state.items()}
    maps = find_maps(network, student.arch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.head == "c4":
            model = _c4(config, maps, last_stage(network, student.arch), num_classes + 1)
        else:
            model = _with_fpn(config, maps, num_classes + 1)
    model.transform = Prepared(0, 0, list(student.mean), list(student.std))
    ours = {id(tensor): name for name, tensor in model.state_dict(keep_vars=True).items()}
    used = {name: ours[key] for key, name in theirs.items() if key in ours}
    left_out = tuple(name for key, name in theirs.items() if key not in ours)
    body = model.backbone if config.head == "c4" else model.backbone.body
    if config.norm == "frozen":
        freeze_batch_norm_2d(module_root(body))
        if config.head == "c4":
            freeze_batch_norm_2d(model.roi_heads.box_head)
    if config.freeze_stages:
        _freeze_until(module_root(body), maps.taps[config.freeze_stages - 1])
    return Detector(model, used, left_out)


def _with_fpn(config: DetectorConfig, maps: Maps, num_classes: int) -> nn.Module:
    first = STRIDES.index(FINEST[config.detector])
    two_stages = config.detector == "faster-rcnn"
    extra = LastLevelMaxPool() if two_stages else LastLevelP6P7(config.width, config.width)
    fpn = FeaturePyramidNetwork(list(maps.widths[first:]), config.width, extra)
    backbone = Pyramid(maps.extract(first, len(STRIDES) - 1), fpn, config.width)
    if config.detector == "fcos":
        return FCOS(backbone, num_classes, score_thresh=SURE)
    sides = [config.anchor * 2**level for level in range(LEVELS)]
    if two_stages:
        anchors = AnchorGenerator(tuple((side,) for side in sides), (RATIOS,) * LEVELS)
        return FasterRCNN(
            backbone, num_classes, rpn_anchor_generator=anchors, box_score_thresh=SURE
        )
    thirds = tuple(tuple(int(side * 2 ** (i / 3)) for i in range(3)) for side in sides)
    anchors = AnchorGenerator(thirds, (RATIOS,) * LEVELS)
    return RetinaNet(
        backbone,
        num_classes,
        anchor_generator=anchors,
        score_thresh=SURE,
        detections_per_img=DETECTIONS,
    )


def _c4(config: DetectorConfig, maps: Maps, last: nn.Module, num_classes: int) -> nn.Module:
    """The head sees 14 x 14 pixels of the map with stride 16, which its stage makes 7 x 7."""
    place = STRIDES.index(16)
    body = maps.extract(place, place)
    body.out_channels = maps.widths[place]
    sides = tuple(config.anchor * 2**level for level in range(LEVELS))
    head = nn.Sequential(
        OrderedDict(layer4=last, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())
    )
    return FasterRCNN(
        body,
        rpn_anchor_generator=AnchorGenerator((sides,), (RATIOS,)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 2 * POOLED, SAMPLES),
        box_head=head,
        box_predictor=FastRCNNPredictor(maps.widths[-1], num_classes),
        box_score_thresh=SURE,
    )


def _freeze_until(root: nn.Module, tap: str) -> None:
    """Stop all modules up to the end of one from learning, their batch norms from counting."""
    modules = list(root.named_modules())
    end = max(i for i, (name, _) in enumerate(modules) if f"{name}.".startswith(f"{tap}."))
    for name, module in modules[: end + 1]:
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
        if isinstance(module, nn.BatchNorm2d):
            parent, _, child = name.rpartition(".")
            root.get_submodule(parent).add_module(child, freeze_batch_norm_2d(module))
