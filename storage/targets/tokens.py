"""Tokens (ScaleKD): a teacher's last spatial features, mean and remainder kept apart.

With t the T tokens [T, D] of a view and m their mean: `mean` keeps m, `remainder` keeps
(t - m) P, P orthonormal [D, r] (columns by falling energy of t - m, not centred again), so a token
decodes to m + (t - m) P P^T. Kept apart because ScaleKD's second loss is of t - m alone (removing
the DC term of a DCT over the grid removes the mean), which is small beside m.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.errors import UsageError
from storage.targets.features import kept_energy
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

MEAN, REMAINDER = "mean", "remainder"
MEAN_ENCODINGS = ("fp16", "fp32")
REMAINDER_ENCODINGS = ("int8", "fp16", "fp32")
TAIL_FILE = "tail.safetensors"
AFFINE = "affine of mean"


@dataclass(frozen=True, kw_only=True)
class TokenSettings:
    """What the vectors of a `tokens` target are.

    grid: (height, width) of the tokens, in raster order. width: D of a token.
    rank: r coordinates of the remainder; D: all of it, in the tokens' own axes, without a basis.
    layer: which of the teacher's tensors it is. tail: whether the teacher's last stage lies beside
    it (`tail.safetensors`), tail_settings: what that module is.
    logits: "affine of mean" where the teacher's logits are a linear layer of the mean, or None.
    basis_images, basis_views, basis_seed, energy: as in `FeatureSettings`.
    """

    grid: tuple[int, int]
    width: int
    rank: int
    layer: str
    tail: bool = False
    tail_settings: dict[str, Any] | None = None
    logits: str | None = None
    basis_images: int = 0
    basis_views: int = 1
    basis_seed: int = 0
    energy: float = 1.0

    def __post_init__(self) -> None:
        check_types(self)
        object.__setattr__(self, "grid", tuple(self.grid))
        if len(self.grid) != 2 or min(self.grid) < 1:
            raise UsageError(f"a grid of {self.grid} tokens; expected height and width")
        if not 1 <= self.rank <= self.width:
            raise UsageError(
                f"tokens of {self.rank} coordinates; they have {self.width}: use at most that"
            )
        if self.logits not in (None, AFFINE):
            raise UsageError(f"logits are {self.logits!r}; expected {AFFINE!r} or nothing")
        if self.rank < self.width and self.basis_images < 1:
            raise UsageError("the basis was fitted on no images; expected at least one view of one")
        if not 0 <= self.energy <= 1 + 1e-6:
            raise UsageError(f"energy is {self.energy}; expected a share, 0 to 1")

    @property
    def tokens(self) -> int:
        """T, tokens a view."""
        return self.grid[0] * self.grid[1]


def token_record(
    *,
    name: str,
    teacher: str,
    views: int,
    layer: str,
    grid: tuple[int, int],
    width: int,
    basis: Array | None = None,
    spectrum: Array | None = None,
    mean_encoding: str = "fp16",
    remainder_encoding: str = "int8",
    tail_sha256: str | None = None,
    tail_settings: dict[str, Any] | None = None,
    logits: str | None = None,
    basis_images: int = 0,
    basis_views: int = 1,
    basis_seed: int = 0,
) -> TargetRecord:
    """The record of a tokens target; its constants are `basis` and `spectrum` where r < D.

    Args:
        basis: float32 [D, r], orthonormal; None: the whole remainder is kept.
        spectrum: float64 [D], root mean square of the remainder along every component, falling.
        tail_sha256: hex SHA-256 of `tail.safetensors`, where there is one.
    Raises:
        UsageError: settings that don't go together.
    """
    if (basis is None) != (spectrum is None):
        raise UsageError("tokens: a basis comes with its spectrum; give both or neither")
    rank = width if basis is None else int(basis.shape[1])
    settings = TokenSettings(
        grid=grid, width=width, rank=rank, layer=layer, tail=tail_sha256 is not None,
        tail_settings=tail_settings, logits=logits, basis_images=basis_images,
        basis_views=basis_views, basis_seed=basis_seed,
        energy=1.0 if spectrum is None else kept_energy(spectrum, rank),
    )  # fmt: skip
    arrays = {} if basis is None else {"basis": basis, "spectrum": spectrum}
    record = TargetRecord(
        kind="tokens", name=name, teacher=teacher, views=views,
        parts=_parts(settings, mean_encoding, remainder_encoding),
        constants=constants_of(arrays),
        files={} if tail_sha256 is None else {TAIL_FILE: tail_sha256},
        settings=settings_to_json(settings),
    )  # fmt: skip
    check_tokens(record)
    return record


def token_settings(record: TargetRecord) -> TokenSettings:
    """Settings of a tokens target."""
    return settings_from_json(TokenSettings, record)


def check_tokens(record: TargetRecord) -> None:
    """The record is a tokens target that makes sense.

    Raises:
        UsageError: it isn't.
    """
    settings = token_settings(record)
    mean, remainder = record.part(MEAN).encoding, record.part(REMAINDER).encoding
    if mean not in MEAN_ENCODINGS or remainder not in REMAINDER_ENCODINGS:
        raise UsageError(
            f"{record.path}: mean as {mean}, remainder as {remainder}; expected "
            f"{' or '.join(MEAN_ENCODINGS)} and {', '.join(REMAINDER_ENCODINGS)}"
        )
    expect_parts(record, _parts(settings, mean, remainder))
    D, r = settings.width, settings.rank
    expect_constants(
        record, {"basis": ((D, r), "float32"), "spectrum": ((D,), "float64")} if r < D else {}
    )
    if set(record.files) != ({TAIL_FILE} if settings.tail else set()):
        raise UsageError(f"{record.path}: files {sorted(record.files)} against its settings")


def split_tokens(tokens: Array, basis: Array | None = None) -> dict[str, Floats]:
    """`mean` [..., D] and `remainder` [..., T, r] of tokens [..., T, D], for `encode_vectors`.

    The remainder is against the mean as it is, not as it is stored, so that it has none itself.
    """
    tokens = np.asarray(tokens, np.float32)
    mean = tokens.mean(axis=-2, dtype=np.float64).astype(np.float32)
    rest = tokens - mean[..., None, :]
    return {MEAN: mean, REMAINDER: rest if basis is None else rest @ basis}


def decode_tokens(
    record: TargetRecord, values: Mapping[str, Array], basis: Array | None = None
) -> Floats:
    """Tokens float32 [..., T, D] from what `read_target` gives.

    Args:
        basis: the constant `basis`; may be among the values instead.
    Raises:
        UsageError: the record has a basis, and none was given.
    """
    settings = token_settings(record)
    rest = values[REMAINDER]
    if settings.rank < settings.width:
        basis = values.get("basis") if basis is None else basis
        if basis is None:
            raise UsageError(f"{record.path}: its tokens need the constant basis")
        rest = rest @ basis.T
    tokens: Floats = values[MEAN][..., None, :] + rest
    return tokens


def _parts(settings: TokenSettings, mean: str, remainder: str) -> tuple[VectorPart, ...]:
    shape = (settings.tokens, settings.rank)
    return (
        VectorPart(name=MEAN, shape=(settings.width,), encoding=mean),
        VectorPart(name=REMAINDER, shape=shape, encoding=remainder),
    )
