"""Settings of a segmentation run, with those of the published ones by data set."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from trainer.checks import require
from trainer.step_config import NORMS

IGNORED = 255  # in targets: counts in no loss and no score
# Optimiser -> its values in place of a preset's. AdamW's are those of mmsegmentation's UPerNet on
# ViT-B/16 (its configs/vit), where the decoder learns at the encoder's rate.
OPTIMIZERS: dict[str, dict[str, float]] = {
    "sgd": {},
    "adamw": {"lr": 6e-5, "weight_decay": 0.01, "power": 1.0, "head_factor": 1.0},
}
# Name -> output strides that segmentation-models-pytorch can give its encoder there.
DECODERS: dict[str, tuple[int, ...]] = {
    "pspnet": (8, 16, 32),
    "deeplabv3": (8, 16),
    "deeplabv3plus": (8, 16),
    "pan": (16, 32),
    "fpn": (32,),
    "upernet": (32,),
    "unet": (32,),
    "unetplusplus": (32,),
    "manet": (32,),
    "linknet": (32,),
    "segformer": (32,),
}
TESTS = ("window", "whole")


@dataclass(frozen=True, kw_only=True)
class SegmentSettings:
    """How a segmentation network is built, trained and judged.

    Attributes:
        output_stride: of the encoder's last map; None: 8, or the nearest its decoder can have.
        aux_weight: of the loss of a second head (torchvision's FCNHead) on the last map but one.
        batch_size: images of a step, of all processes together.
        norm: batch norms of every process's own images (`batch`) or of all (`sync`).
        head_factor: times the learning rate, for all that isn't encoder.
        crop: side of a training crop and of a test window.
        scale: smallest and largest factor that an image is resized by.
        optimizer: one of OPTIMIZERS; with `adamw`, biases and the scales of norms don't decay.
        rotate: largest angle in degrees. blur, photometric, flip: whether they take part.
        evaluate_every: epochs; 0: after the last alone.
        test: `window`, overlapping windows of side `crop` in steps of `window_stride` of it; or
            `whole`, the image at once.
        test_side: longer side that images are resized to before; None: as they are.
        test_scales: factors of that size, whose probabilities are averaged. test_flip: with the
            mirrored image's, too.
    """

    decoder: str = "pspnet"
    output_stride: int | None = None
    aux_weight: float = 0.4
    norm: str = "batch"
    epochs: int = 100
    batch_size: int = 16
    lr: float = 0.01
    head_factor: float = 10.0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    power: float = 0.9
    warmup_epochs: float = 0.0
    clip_norm: float | None = None
    crop: int = 512
    scale: tuple[float, float] = (0.5, 2.0)
    optimizer: str = "sgd"
    rotate: float = 10.0
    blur: bool = True
    photometric: bool = True
    flip: bool = True
    evaluate_every: int = 0
    test: str = "window"
    window_stride: float = 2 / 3
    test_side: int | None = None
    test_scales: tuple[float, ...] = (1.0,)
    test_flip: bool = True

    def __post_init__(self) -> None:
        require(
            self.decoder in DECODERS,
            f"--decoder is {self.decoder!r}; expected one of {', '.join(DECODERS)}",
        )
        strides = DECODERS[self.decoder]
        require(
            self.output_stride is None or self.output_stride in strides,
            f"--output-stride is {self.output_stride}; {self.decoder} can have "
            f"{', '.join(map(str, strides))}",
        )
        require(
            self.batch_size >= 2,
            f"--batch-size is {self.batch_size}; expected 2 or more, as batch norms of pooled maps "
            "need",
        )
        require(32 <= self.crop <= 4096, f"--crop is {self.crop}; expected 32 to 4096")
        low, high = self.scale
        require(0 < low <= high, f"--scale is {low} {high}; expected 0 < smallest <= largest")
        require(self.norm in NORMS, f"--norm is {self.norm!r}; expected one of {', '.join(NORMS)}")
        require(self.test in TESTS, f"--test is {self.test!r}; expected one of {', '.join(TESTS)}")
        require(
            0 < self.window_stride <= 1,
            f"--window-stride is {self.window_stride}; expected 0 < stride <= 1",
        )
        require(
            bool(self.test_scales) and min(self.test_scales) > 0,
            f"--test-scales are {list(self.test_scales)}; expected positive numbers",
        )
        require(
            self.test_side is None or self.test_side >= 32,
            f"--test-side is {self.test_side}; expected at least 32",
        )
        for name in ("aux_weight", "rotate", "evaluate_every"):
            value = getattr(self, name)
            require(value >= 0, f"--{name.replace('_', '-')} is {value}; expected >= 0")
        require(
            self.head_factor > 0, f"--head-factor is {self.head_factor}; expected a positive number"
        )
        require(
            self.optimizer in OPTIMIZERS,
            f"--optimizer is {self.optimizer!r}; expected one of {', '.join(OPTIMIZERS)}",
        )

    @property
    def stride(self) -> int:
        """The encoder's output stride, resolved."""
        return self.output_stride or min(DECODERS[self.decoder])

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"output_stride": self.stride}


# KDEP (arXiv:2203.14863), its src/semseg/config: PSPNet on ResNet-18; other sets have ours.
PRESETS = {
    "cityscapes": SegmentSettings(norm="sync", epochs=200, evaluate_every=20, test_side=2048),
    "voc": SegmentSettings(
        norm="sync", epochs=50, evaluate_every=2, scale=(0.5, 1.5), test_side=512
    ),
    "ade20k": SegmentSettings(norm="sync", epochs=100, evaluate_every=10, test_side=512),
    "folder": SegmentSettings(epochs=100, evaluate_every=10),
}


def resolve(layout: str, arch: str, changes: dict[str, Any]) -> SegmentSettings:
    """The published settings of a data set and a network, with what was asked for over them.

    Args:
        changes: by name; None leaves a setting as it is.
    Raises:
        UsageError: a value out of its range.
    """
    preset = PRESETS[layout]
    if "mobilenet" in arch:  # not dilated; no second head there
        preset = replace(preset, output_stride=32, aux_weight=0.0)
        if layout == "cityscapes":
            preset = replace(preset, lr=0.006)
    given = {name: value for name, value in changes.items() if value is not None}
    usual: dict[str, Any] = OPTIMIZERS.get(given.get("optimizer", "sgd"), {})
    preset = replace(preset, **usual)
    assert given.keys() <= {field.name for field in fields(SegmentSettings)}
    if "decoder" in given and "output_stride" not in given:
        given["output_stride"] = None
    return replace(preset, **given)
