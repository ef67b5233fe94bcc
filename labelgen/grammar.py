"""How teachers are named on the command line, and what each name stands for.

r152                      an alias, see ALIASES
tv:resnet152@IMAGENET1K_V2  a torchvision classifier and its weights (default weights without @)
timm:resnet18.a1_in1k     a timm model and its pretrained tag (default tag without it)
file:weights.safetensors  weights of your own; the architecture by --arch or by the file
tv:resnet18, timm:..., resnet20   with --weights FILE: that architecture, those weights
"""

from __future__ import annotations

from dataclasses import dataclass

from storage.errors import UsageError

ALIASES = {
    "r18": "tv:resnet18@IMAGENET1K_V1",
    "r34": "tv:resnet34@IMAGENET1K_V1",
    "r50": "tv:resnet50@IMAGENET1K_V2",
    "r101": "tv:resnet101@IMAGENET1K_V2",
    "r152": "tv:resnet152@IMAGENET1K_V2",
    "wrn50": "tv:wide_resnet50_2@IMAGENET1K_V2",
    "wrn101": "tv:wide_resnet101_2@IMAGENET1K_V2",
    "rx101": "tv:resnext101_64x4d@IMAGENET1K_V1",
    "mnv2": "tv:mobilenet_v2@IMAGENET1K_V2",
    "mnv3": "tv:mobilenet_v3_large@IMAGENET1K_V2",
    "effb0": "tv:efficientnet_b0@IMAGENET1K_V1",
    "effv2s": "tv:efficientnet_v2_s@IMAGENET1K_V1",
    "regnet16": "tv:regnet_y_16gf@IMAGENET1K_V2",
    "cnxt": "tv:convnext_tiny@IMAGENET1K_V1",
    "cnxl": "tv:convnext_large@IMAGENET1K_V1",
    "vitb16": "tv:vit_b_16@IMAGENET1K_V1",
    "swint": "tv:swin_t@IMAGENET1K_V1",
    "swinb": "tv:swin_b@IMAGENET1K_V1",
}
TORCHVISION, TIMM, FILE, PLAIN = "tv", "timm", "file", ""


@dataclass(frozen=True, kw_only=True)
class TeacherName:
    """A teacher name taken apart.

    Attributes:
        source: "tv", "timm", "file", or "" for an architecture of trainer.models.
        name: architecture (with its tag for timm), or the path of a weights file.
        weights: torchvision's weights name after "@", None when not given.
    """

    source: str
    name: str
    weights: str | None = None

    def __str__(self) -> str:
        prefix = f"{self.source}:" if self.source else ""
        return f"{prefix}{self.name}" + (f"@{self.weights}" if self.weights else "")


def parse_teacher(text: str) -> TeacherName:
    """Take a teacher name apart; aliases are written out in full first.

    Raises:
        UsageError: an unknown prefix, or nothing after it.
    """
    text = ALIASES.get(text, text)
    if text.startswith("timm/"):
        text = "timm:" + text.removeprefix("timm/")
    source, colon, name = text.partition(":")
    if not colon:
        return TeacherName(source=PLAIN, name=_not_empty(text, text))
    if source not in (TORCHVISION, TIMM, FILE):
        raise UsageError(
            f"teacher {text!r} has the unknown prefix {source!r}; expected tv:, timm:, file: "
            "or an alias (labelgen teachers lists them)"
        )
    weights = None
    if source == TORCHVISION:
        name, _, weights_text = name.partition("@")
        weights = weights_text or None
    return TeacherName(source=source, name=_not_empty(name, text), weights=weights)


def _not_empty(name: str, text: str) -> str:
    if not name:
        raise UsageError(
            f"teacher {text!r} names nothing; expected for example r152 or tv:resnet18"
        )
    return name
