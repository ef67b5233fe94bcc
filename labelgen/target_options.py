"""Options of `labelgen run` and `labelgen add` that ask for targets beside the labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import click

from storage.cli_common import with_options
from storage.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_VIEWS = 8
DEFAULT_FEATURE_RANK = 512  # a ResNet-18 student's width (KDEP)
SMALLEST_TOKEN_RANK = 256  # by default; below that, bytes are few anyway
TOKEN_RANK_SHARE = 3  # a third of the width keeps 0.97 of the gradient (docs/methods/scalekd.md)
SPACES = ("z", "y")
ROTATIONS = (1, 4)
TOP_K = "top-k"
HEAD_ENCODINGS = (
    "auto", "pooled-int8", "pooled-fp16", "pooled-fp32", "dense-int8", "dense-fp32", TOP_K,
)  # fmt: skip
DEFAULT_HEAD_TOP_K = 50
TOKEN_ENCODINGS = ("int8", "fp16", "fp32")
DENSE_ENCODINGS = ("affine8", "fp16", "fp32")
FULL_RANK = 0  # of tokens: everything is kept, without a basis
OWN_NAME = ""  # a target is named for its teacher


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """Which targets are wanted, and how.

    Attributes:
        features, heads, tokens, dense: name of each target, OWN_NAME for the teacher's; None: not
            wanted.
        feature_views, head_views, token_views, dense_views: how many of an image's views have it;
            None: DEFAULT_VIEWS, or all views if there are fewer.
        feature_rank: components; None: DEFAULT_FEATURE_RANK, or the feature's width if that is
            smaller. feature_space: "z" (float16) or "y" (int8) of temperature and power.
        rotations, head_encoding: of heads. head_top_k: logits kept of each with "top-k"; None:
            DEFAULT_HEAD_TOP_K.
        dense_encoding: of dense.
        token_encoding: of remainders; their mean is float32 with "fp32", else float16. token_rank:
            coordinates of a token's remainder, FULL_RANK for all; None as for features.
        tail: whether the teacher's last stage is kept beside its tokens.
        basis_images: images that bases are fitted on, at most.
    """

    features: str | None = None
    feature_views: int | None = None
    feature_rank: int | None = None
    feature_space: str = "z"
    power_temperature: float = 0.1
    power: float = 3.0
    heads: str | None = None
    head_views: int | None = None
    rotations: int = 4
    head_encoding: str = "auto"
    head_top_k: int | None = None
    tokens: str | None = None
    token_views: int | None = None
    token_rank: int | None = None
    token_encoding: str = "int8"
    tail: bool = True
    dense: str | None = None
    dense_views: int | None = None
    dense_encoding: str = "affine8"
    basis_images: int = 20_000

    def __post_init__(self) -> None:
        _one_of("--feature-space", self.feature_space, SPACES)
        _one_of("--rotations", self.rotations, ROTATIONS)
        _one_of("--head-encoding", self.head_encoding, HEAD_ENCODINGS)
        _one_of("--token-encoding", self.token_encoding, TOKEN_ENCODINGS)
        _one_of("--dense-encoding", self.dense_encoding, DENSE_ENCODINGS)
        counts = {
            "--feature-views": self.feature_views,
            "--head-views": self.head_views,
            "--token-views": self.token_views,
            "--dense-views": self.dense_views,
            "--feature-rank": self.feature_rank,
            "--token-rank": self.token_rank or None,
            "--head-top-k": self.head_top_k,
            "--basis-images": self.basis_images,
        }
        for option, count in counts.items():
            if count is not None and count < 1:
                raise UsageError(f"{option} is {count}; expected 1 or more")
        if self.head_top_k is not None and self.head_encoding != TOP_K:
            raise UsageError(
                f"--head-top-k is {self.head_top_k} with --head-encoding {self.head_encoding}; "
                f"it belongs to {TOP_K}"
            )
        if not (0 < self.power_temperature < float("inf") and 0 < self.power < float("inf")):
            raise UsageError(
                f"--power-temperature {self.power_temperature} and --power {self.power}; expected "
                "numbers above 0 (KDEP: 0.1 and 3)"
            )

    @property
    def wanted(self) -> tuple[str, ...]:
        """The kinds of targets asked for: features, heads, tokens, dense."""
        kinds = ("features", "heads", "tokens", "dense")
        return tuple(kind for kind in kinds if getattr(self, kind) is not None)

    def views_of(self, kind: str, num_views: int) -> int:
        """Views that a kind of target has in a store of `num_views`.

        Raises:
            UsageError: more were asked for.
        """
        option = "dense" if kind == "dense" else kind.removesuffix("s")
        asked: int | None = getattr(self, f"{option}_views")
        if asked is not None and asked > num_views:
            raise UsageError(
                f"--{option}-views is {asked}, but an image has {num_views} views: ask for at most "
                f"{num_views}"
            )
        return min(DEFAULT_VIEWS, num_views) if asked is None else asked


def default_token_rank(width: int) -> int:
    """Coordinates of tokens of this width that are kept if nothing is said."""
    return min(width, max(SMALLEST_TOKEN_RANK, -(-width // TOKEN_RANK_SHARE)))


def _one_of(option: str, value: object, known: tuple[object, ...]) -> None:
    if value not in known:
        expected = ", ".join(map(str, known))
        raise UsageError(f"{option} is {value!r}; expected one of {expected}")


class _TokenRank(click.ParamType):  # type: ignore[type-arg]
    name = "rank|full"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if value == "full":
            return FULL_RANK
        return int(click.IntRange(1).convert(value, param, ctx))


def _named(option: str, text: str) -> Callable[[F], F]:
    """An option with a value or without one."""
    return click.option(
        option, default=None, is_flag=False, flag_value=OWN_NAME, metavar="[NAME]", help=text
    )


def _views(option: str, text: str) -> Callable[[F], F]:
    return click.option(
        option, type=click.IntRange(1), default=None,
        help=f"Views of every image that have {text} [default: {DEFAULT_VIEWS}].",
    )  # fmt: skip


_OPTIONS = (
    _named("--features", "Keep the pooled feature before the last ReLU (KDEP), projected."),
    _views("--feature-views", "features"),
    click.option("--feature-rank", type=click.IntRange(1), default=None,
                 help=f"Components kept [default: {DEFAULT_FEATURE_RANK}, or the width]."),
    click.option("--feature-space", type=click.Choice(SPACES), default="z", show_default=True,
                 help="z: projected, float16; y: power scaled as well, int8."),
    click.option("--power-temperature", type=float, default=0.1, show_default=True,
                 help="T of y = sign(z) |z/T|^(1/n)."),
    click.option("--power", type=float, default=3.0, show_default=True,
                 help="n of y = sign(z) |z/T|^(1/n)."),
    _named("--heads", "Keep the inputs of the teacher's heads for each rotation (HSAKD)."),
    _views("--head-views", "heads"),
    click.option("--rotations", type=click.Choice(["1", "4"]), default="4", show_default=True,
                 callback=lambda context, option, value: int(value),
                 help="Quarter turns of a view that heads are kept of."),
    click.option("--head-encoding", type=click.Choice(HEAD_ENCODINGS), default="auto",
                 show_default=True,
                 help="Inputs and weights, or logits; auto: the smaller one, for each head. top-k: "
                      "the largest logits, for temperatures 1 and 3, with the error that makes."),
    click.option("--head-top-k", type=click.IntRange(1), default=None,
                 help=f"Logits that {TOP_K} keeps of each head [default: {DEFAULT_HEAD_TOP_K}]."),
    _named("--tokens", "Keep the last stage's tokens and that stage's weights (ScaleKD)."),
    _views("--token-views", "tokens"),
    click.option("--token-rank", type=_TokenRank(), default=None,
                 help=f"Coordinates of a token less its image's mean token [default: a third of "
                      f"the width, at least {SMALLEST_TOKEN_RANK}, or all if there are fewer]."),
    click.option("--token-encoding", type=click.Choice(TOKEN_ENCODINGS), default="int8",
                 show_default=True,
                 help="How these are kept; fp32 at full rank is the teacher's own numbers."),
    click.option("--tail/--no-tail", default=True, show_default=True,
                 help="Keep the weights of the teacher's last stage beside its tokens."),
    _named("--dense", "Keep the logits of all classes."),
    _views("--dense-views", "dense logits"),
    click.option("--dense-encoding", type=click.Choice(DENSE_ENCODINGS), default="affine8",
                 show_default=True, help="How dense logits are kept."),
    click.option("--basis-images", type=click.IntRange(1), default=20_000, show_default=True,
                 help="Images that the bases of features and tokens are fitted on, at most."),
)  # fmt: skip


def target_options(command: F) -> F:
    """--features, --heads, --tokens, --dense and what belongs to them; see `options_from_cli`."""
    return with_options(_OPTIONS)(command)


def options_from_cli(values: dict[str, Any]) -> TargetOptions | None:
    """The targets asked for; None where there are none.

    Args:
        values: a command's parameters; those of `target_options` are taken out.
    """
    own = {field.name: values.pop(field.name) for field in fields(TargetOptions)}
    options = TargetOptions(**own)
    return options if options.wanted else None
