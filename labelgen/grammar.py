"""How teachers are named on the command line, and what each name stands for.

r152                        an alias, see ALIASES
tv:resnet152@IMAGENET1K_V2  a torchvision classifier and its weights (default weights without @)
timm:resnet18.a1_in1k       a timm model and its pretrained tag (default tag without it);
timm/resnet18.a1_in1k       the same
hf-hub:OWNER/REPO@REVISION  a timm model on the Hugging Face Hub (the main branch without @)
local-dir:FOLDER            a timm model in a folder: config.json and model.safetensors
file:weights.safetensors    weights of your own; the architecture by --arch or by the file
tv:resnet18, timm:..., resnet20   with --weights FILE: that architecture, those weights
ensemble:r50+timm:...       the mean of the probabilities of two teachers or more
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
TORCHVISION, TIMM, HUB, FOLDER = "tv", "timm", "hf-hub", "local-dir"
FILE, ENSEMBLE, PLAIN = "file", "ensemble", ""
WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_PREFIXES = (TORCHVISION, TIMM, HUB, FOLDER, FILE, ENSEMBLE)
_WITH_VERSION = (TORCHVISION, HUB)  # what stands after "@" is the weights or the revision


@dataclass(frozen=True, kw_only=True)
class TeacherName:
    """A teacher name taken apart.

    Attributes:
        source: "tv", "timm", "hf-hub", "local-dir", "file", "ensemble", or "" for an architecture
            of trainer.models.
        name: architecture (with its tag for timm), repository, or the path of a file or folder.
        weights: torchvision's weights name, or the Hub's revision, after "@"; None when not given.
        members: names of an ensemble's teachers in their order; () for one network.
    """

    source: str
    name: str
    weights: str | None = None
    members: tuple[TeacherName, ...] = ()

    def __str__(self) -> str:
        prefix = f"{self.source}:" if self.source else ""
        return f"{prefix}{self.name}" + (f"@{self.weights}" if self.weights else "")


def parse_teacher(text: str) -> TeacherName:
    """Take a teacher name apart; aliases are written out in full first.

    Raises:
        UsageError: an unknown prefix, nothing after it, or an ensemble of fewer than two teachers,
            of the same one twice or of another ensemble.
    """
    text = ALIASES.get(text, text)
    if text.startswith("timm/"):
        text = "timm:" + text.removeprefix("timm/")
    source, colon, name = text.partition(":")
    if not colon:
        kind = FILE if text.endswith(WEIGHTS_SUFFIXES) else PLAIN
        return TeacherName(source=kind, name=_not_empty(text, text))
    if source not in _PREFIXES:
        raise UsageError(
            f"teacher {text!r} has the unknown prefix {source!r}; expected "
            f"{', '.join(f'{prefix}:' for prefix in _PREFIXES)} "
            "or an alias (labelgen teachers lists them)"
        )
    if source == ENSEMBLE:
        members = _parse_members(_not_empty(name, text))
        joined = "+".join(str(member) for member in members)
        return TeacherName(source=source, name=joined, members=members)
    weights = None
    if source in _WITH_VERSION:
        name, _, weights_text = name.partition("@")
        weights = weights_text or None
    return TeacherName(source=source, name=_not_empty(name, text), weights=weights)


def _parse_members(text: str) -> tuple[TeacherName, ...]:
    if f"{ENSEMBLE}:" in text:
        raise UsageError(f"ensemble of {text!r} holds an ensemble: name its networks one by one")
    members = tuple(parse_teacher(part) for part in text.split("+"))
    if len(set(members)) < max(2, len(members)):
        raise UsageError(
            f"ensemble of {text!r}: expected two different teachers or more, joined by +"
        )
    return members


def _not_empty(name: str, text: str) -> str:
    if not name:
        raise UsageError(
            f"teacher {text!r} names nothing; expected for example r152 or tv:resnet18"
        )
    return name
