"""Features (KDEP): a pooled vector, projected by a basis, kept as z or after power scaling as y.

With f the teacher's pooled vector of a view (before its last ReLU), mu the mean and V the first r
eigenvectors of the covariance over a sample of views: z = (f - mu) V. Power temperature scaling
(PTS; KDEP, CVPR 2022, section 3.3): y = sign(z) |z / T|^(1 / n).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.errors import UsageError
from storage.targets.kind_settings import (
    constants_of,
    expect_constants,
    expect_parts,
    settings_from_json,
    settings_to_json,
)
from storage.targets.record import TargetRecord, VectorPart
from storage.typed import check_types

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

VALUE = "value"
SPACES = {"z": ("fp16", "fp32"), "y": ("int8", "fp16", "fp32")}  # encodings of each
DEFAULT_TEMPERATURE = 0.1
DEFAULT_POWER = 3.0
ORTHONORMAL = 1e-4  # largest error of V^T V in any entry


@dataclass(frozen=True, kw_only=True)
class FeatureSettings:
    """What the vectors of a `features` target are.

    width: D of the teacher's pooled vector. rank: r components kept.
    layer: which of the teacher's tensors was pooled.
    space: "z" (projected) or "y" (power scaled). temperature, power: T and n of y; None for z.
    basis_images, basis_views: how many images, and views of each, the basis was fitted on.
    basis_seed: which images. energy: share of the variance that the r components keep.
    """

    width: int
    rank: int
    layer: str
    space: str
    temperature: float | None = None
    power: float | None = None
    basis_images: int
    basis_views: int = 1
    basis_seed: int = 0
    energy: float

    def __post_init__(self) -> None:
        check_types(self)
        if not 1 <= self.rank <= self.width:
            raise UsageError(
                f"features of {self.rank} components; the pooled vector has {self.width}: use at "
                f"most {self.width}"
            )
        if self.space not in SPACES:
            raise UsageError(f"features in space {self.space!r}; expected z or y")
        scaled = (self.temperature, self.power) != (None, None)
        if scaled != (self.space == "y"):
            raise UsageError("temperature and power belong to y, and z has neither")
        if self.space == "y":
            check_scaling(self.temperature, self.power)
        if self.basis_images < 1 or self.basis_views < 1:
            raise UsageError("the basis was fitted on no images; expected at least one view of one")
        if not 0 <= self.energy <= 1 + 1e-6:
            raise UsageError(f"energy is {self.energy}; expected a share, 0 to 1")


def feature_record(
    *,
    name: str,
    teacher: str,
    views: int,
    layer: str,
    mean: Array,
    basis: Array,
    spectrum: Array,
    space: str = "y",
    encoding: str = "int8",
    temperature: float | None = None,
    power: float | None = None,
    basis_images: int,
    basis_views: int = 1,
    basis_seed: int = 0,
) -> TargetRecord:
    """The record of a features target; its constants are `mean`, `basis` and `spectrum`.

    Args:
        mean: float32 [D]. basis: float32 [D, r], orthonormal columns of falling variance.
        spectrum: float64 [D], standard deviation of every component, falling.
        space: with "y", T and n default to KDEP's 0.1 and 3.
    Raises:
        UsageError: settings that don't go together, such as z in 8 bits.
    """
    width, rank = basis.shape
    if space == "y":
        temperature = DEFAULT_TEMPERATURE if temperature is None else temperature
        power = DEFAULT_POWER if power is None else power
    settings = FeatureSettings(
        width=width, rank=rank, layer=layer, space=space, temperature=temperature, power=power,
        basis_images=basis_images, basis_views=basis_views, basis_seed=basis_seed,
        energy=kept_energy(spectrum, rank),
    )  # fmt: skip
    record = TargetRecord(
        kind="features", name=name, teacher=teacher, views=views,
        parts=(VectorPart(name=VALUE, shape=(rank,), encoding=encoding),),
        constants=constants_of({"mean": mean, "basis": basis, "spectrum": spectrum}),
        settings=settings_to_json(settings),
    )  # fmt: skip
    check_features(record)
    return record


def feature_settings(record: TargetRecord) -> FeatureSettings:
    """Settings of a features target."""
    return settings_from_json(FeatureSettings, record)


def check_features(record: TargetRecord) -> None:
    """The record is a features target that makes sense.

    Raises:
        UsageError: it isn't; z in 8 bits is one reason.
    """
    settings = feature_settings(record)
    encoding = record.parts[0].encoding
    if encoding not in SPACES[settings.space]:
        raise UsageError(
            f"{record.path}: {settings.space} as {encoding}; expected "
            f"{' or '.join(SPACES[settings.space])} (a few components of z hold nearly all of its "
            "range, so 8 bits lose the others)"
        )
    expect_parts(record, [VectorPart(name=VALUE, shape=(settings.rank,), encoding=encoding)])
    D, r = settings.width, settings.rank
    expect_constants(
        record,
        {"mean": ((D,), "float32"), "basis": ((D, r), "float32"), "spectrum": ((D,), "float64")},
    )


def project_features(features: Array, mean: Array, basis: Array) -> Floats:
    """z float32 [..., r] = (f - mu) V of pooled vectors [..., D]."""
    centred = features.astype(np.float32) - mean
    z: Floats = centred @ basis
    return z


def stored_features(record: TargetRecord, z: Floats) -> Floats:
    """What a record stores of z [..., r]: z itself, or y; `encode_vectors` takes it."""
    settings = feature_settings(record)
    if settings.temperature is None or settings.power is None:
        return z
    return power_scale(z, settings.temperature, settings.power)


def decode_features(
    record: TargetRecord,
    values: Mapping[str, Array],
    *,
    space: str | None = None,
    temperature: float | None = None,
    power: float | None = None,
) -> Floats:
    """float32 [..., r] from what `read_target` gives, in any space and with any T and n.

    Args:
        space: "z" or "y"; None: as stored. temperature, power: of y; None: as stored, else KDEP's.
    """
    settings = feature_settings(record)
    found: Floats = values[VALUE]
    wanted = space or settings.space
    T = temperature or settings.temperature or DEFAULT_TEMPERATURE
    n = power or settings.power or DEFAULT_POWER
    if wanted not in SPACES:
        raise UsageError(f"features in space {wanted!r}; expected z or y")
    if wanted == settings.space == "z" or (
        wanted == settings.space and (T, n) == (settings.temperature, settings.power)
    ):
        return found
    if settings.temperature is not None and settings.power is not None:
        found = power_unscale(found, settings.temperature, settings.power)
    return found if wanted == "z" else power_scale(found, T, n)


def power_scale(z: Array, temperature: float, power: float) -> Floats:
    """y = sign(z) |z / T|^(1 / n) in float32 (KDEP, CVPR 2022, section 3.3)."""
    check_scaling(temperature, power)
    z = np.asarray(z, np.float32)
    root = np.power(np.abs(z / np.float32(temperature)), np.float32(1 / power))
    return np.copysign(root, z).astype(np.float32)


def power_unscale(y: Array, temperature: float, power: float) -> Floats:
    """z = sign(y) T |y|^n in float32, the inverse of `power_scale`."""
    check_scaling(temperature, power)
    y = np.asarray(y, np.float32)
    size = np.float32(temperature) * np.power(np.abs(y), np.float32(power))
    return np.copysign(size, y).astype(np.float32)


def check_scaling(temperature: float | None, power: float | None) -> None:
    """T and n are positive numbers.

    Raises:
        UsageError: they aren't.
    """
    if not (temperature and power and 0 < temperature < np.inf and 0 < power < np.inf):
        raise UsageError(
            f"power temperature scaling with T = {temperature}, n = {power}; expected numbers "
            "above 0 (KDEP: 0.1 and 3)"
        )


def kept_energy(spectrum: Array, rank: int) -> float:
    """Share of the variance in the first `rank` components, of standard deviations [D]."""
    variance = np.square(np.asarray(spectrum, np.float64))
    total = float(variance.sum())
    return round(float(variance[:rank].sum()) / total, 9) if total > 0 else 1.0


def orthonormal_error(basis: Array) -> float:
    """Largest error of V^T V against the identity, of columns [D, r]."""
    columns = np.asarray(basis, np.float64)
    return float(np.abs(columns.T @ columns - np.eye(columns.shape[1])).max())
