"""ScaleKD's parts (Fan et al., NeurIPS 2024, arXiv:2411.06786): projector and the two views.

The projector departs from the published description where the published code does: no residual
around the attention, and a feed-forward block whose identity is the normed value.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from storage.errors import UsageError

Grid = tuple[int, int]
NORMS = ("batch", "layer")
POSITION_STD = 0.02
FEED_FORWARD = 4  # hidden width of the feed-forward block, in widths
_EPS = 1e-12


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a map [B, c, h, w]."""

    def forward(self, maps: Tensor) -> Tensor:
        """Normed at every position."""
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class CrossAttention(nn.Module):
    """Multi-head attention of queries [B, Q, d] to a student's positions [B, S, c].

    Its logits are q k^T scale / sqrt(d / heads).
    """

    def __init__(self, width: int, source_width: int, heads: int, scale: float) -> None:
        super().__init__()
        self._heads, self._scale = heads, scale * (width // heads) ** -0.5
        self.query = nn.Linear(width, width)
        self.key, self.value = nn.Linear(source_width, width), nn.Linear(source_width, width)
        self.out = nn.Linear(width, width)

    def forward(self, queries: Tensor, source: Tensor) -> Tensor:
        """Float [B, Q, d]."""
        q, k, v = (
            layer(x).unflatten(-1, (self._heads, -1)).transpose(1, 2)
            for layer, x in ((self.query, queries), (self.key, source), (self.value, source))
        )
        mixed = F.scaled_dot_product_attention(q, k, v, scale=self._scale)
        return self.out(mixed.transpose(1, 2).flatten(2))


class CrossAttentionProjector(nn.Module):
    """From a student's map [B, c, h, w] to tokens like a teacher's [B, Q, d].

    Args:
        source_width, source_grid: c and (h, w) of the student's map.
        width, grid: d and the grid of the Q tokens.
        heads: of the attention. scale: its softmax scale.
        norm: of the stem, "batch" or "layer".
        own_queries: learn Q queries; else they are given with every call.
    Raises:
        UsageError: heads that don't divide d, or no such norm.
    """

    def __init__(
        self,
        source_width: int,
        source_grid: Grid,
        width: int,
        grid: Grid,
        *,
        heads: int = 8,
        scale: float = 1.0,
        norm: str = "batch",
        own_queries: bool = True,
    ) -> None:
        super().__init__()
        if width % heads:
            raise UsageError(f"{heads} heads don't divide the {width} channels of a projector")
        if norm not in NORMS:
            raise UsageError(f"a projector's norm is {norm!r}; expected {' or '.join(NORMS)}")
        normed = nn.BatchNorm2d if norm == "batch" else ChannelNorm
        self.stem = nn.Sequential(
            nn.Conv2d(source_width, source_width, 3, padding=1), normed(source_width), nn.ReLU()
        )
        self.position = nn.Parameter(torch.empty(1, source_width, *source_grid))
        nn.init.trunc_normal_(self.position, std=POSITION_STD)
        self.queries = nn.Embedding(grid[0] * grid[1], width) if own_queries else None
        self.query_projection = nn.Sequential(nn.Linear(width, width), nn.ReLU())  # 1x1 conv
        self.attention = CrossAttention(width, source_width, heads, scale)
        self.norm = nn.LayerNorm(width)
        hidden = FEED_FORWARD * width
        self.feed_forward = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width)
        )

    def forward(self, maps: Tensor, queries: Tensor | None = None) -> Tensor:
        """Tokens [B, Q, d].

        Args:
            maps: float [B, c, h, w]. queries: [B, Q, d], where the projector has none of its own.
        """
        source = (self.stem(maps) + self.position).flatten(2).transpose(1, 2)
        if queries is None:
            assert self.queries is not None
            queries = self.queries.weight.expand(len(maps), -1, -1)
        normed = self.norm(self.attention(self.query_projection(queries), source))
        return normed + self.feed_forward(normed)


def centred(tokens: Tensor) -> Tensor:
    """Tokens [B, T, D] less each channel's mean over the grid.

    What is left of a map without the DC coefficient of its cosine transform (ScaleKD's second
    view): the inverse of that coefficient alone is the mean at every position.
    """
    return tokens - tokens.mean(dim=1, keepdim=True)


def token_distance(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean over crops and tokens of |s/|s| - z/|z||^2, which is 2 - 2 cos(s, z).

    Sums of it over the T tokens, as published, are this times T. Float32, a scalar.

    Args:
        found, wanted: [B, T, D].
    """
    difference = _unit(found) - _unit(wanted)
    return difference.square().sum(-1).mean()


def _unit(tokens: Tensor) -> Tensor:
    return F.normalize(tokens.float(), dim=-1, eps=_EPS)
