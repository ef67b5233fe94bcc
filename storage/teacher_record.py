"""Settings of a store that tell which network made a set of its labels."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from storage.codecs import TopKCodec
from storage.dictionary import codec_from_json
from storage.errors import UsageError
from storage.thresholds import stored_thresholds
from storage.typed import check_types, plain_dict

# Settings of a teacher that came later: left out where they say what every older store means.
_WRITTEN_UNLESS = {"channel_order": "rgb", "class_offset": 0, "revision": None, "members": (),
                   "compiled": False, "adapted": {}}  # fmt: skip
_TEACHER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}")


@dataclass(frozen=True, kw_only=True)
class TeacherRecord:
    """Which network made one set of labels, and how; `measured` is filled when a store is sealed.

    digest: hex SHA-256 over the weights' sorted (name, dtype, shape, bytes).
    mean, std: three numbers each, for pixels scaled to 0..1.
    classes: names in the order of the outputs, or None where unknown.
    channel_order: "rgb" or "bgr", the order that mean and std are in too.
    class_offset: outputs of the network before the first class that were dropped.
    revision: commit of the repository that the weights came from.
    members: of an ensemble, what tells its networks apart (spec, digest, mean ...), one each.
    compiled: whether the network ran through torch.compile, which may move a label's last bits.
    adapted: how labels were changed since the network gave them (storage.ferkd); {} where they
        are its own.
    """

    name: str
    spec: str
    library: str
    version: str
    arch: str
    digest: str
    licence: str
    input_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    num_classes: int
    classes: tuple[str, ...] | None
    class_order_hash: str | None
    precision: str
    batch_size: int
    codec: TopKCodec
    measured: dict[str, Any] = field(default_factory=dict, compare=False)
    channel_order: str = "rgb"
    class_offset: int = 0
    revision: str | None = None
    members: tuple[dict[str, Any], ...] = ()
    compiled: bool = False
    adapted: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)
        if not _TEACHER_NAME.fullmatch(self.name):
            raise UsageError(
                f"teacher name {self.name!r} can't name a folder; expected up to 100 letters, "
                "digits, '.', '_', '@', '+' or '-', starting with a letter or digit"
            )
        if self.codec.num_classes != self.num_classes:
            raise UsageError(
                f"teacher {self.name}: codec has {self.codec.num_classes} classes, "
                f"the teacher {self.num_classes}"
            )
        if self.classes is not None and len(self.classes) != self.num_classes:
            raise UsageError(
                f"teacher {self.name}: {len(self.classes)} class names for "
                f"{self.num_classes} classes"
            )
        if self.input_size < 1 or self.batch_size < 0:
            raise UsageError(
                f"teacher {self.name}: input_size {self.input_size} and batch_size "
                f"{self.batch_size}; expected at least 1 (a batch_size of 0 where it is unknown)"
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise UsageError(
                f"teacher {self.name}: mean {self.mean} and std {self.std}; expected three numbers "
                "each, std above 0"
            )
        stored_thresholds(self.adapted)
        if self.channel_order not in ("rgb", "bgr"):
            raise UsageError(
                f"teacher {self.name}: channel_order is {self.channel_order!r}; expected rgb or bgr"
            )

    def to_json(self) -> dict[str, Any]:
        """The settings, without what was measured."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        del values["measured"]
        for name, usual in _WRITTEN_UNLESS.items():
            if values[name] == usual:
                del values[name]
        values["codec"] = self.codec.to_json()
        return plain_dict(values)

    @staticmethod
    def from_json(values: dict[str, Any], measured: dict[str, Any]) -> TeacherRecord:
        """The record that `to_json` described."""
        values = dict(values)
        values["codec"] = codec_from_json(values["codec"])
        for name in ("mean", "std", "classes", "members"):
            if isinstance(values.get(name), list):
                values[name] = tuple(values[name])
        return TeacherRecord(**values, measured=measured)
