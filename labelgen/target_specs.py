"""From what a user asks for to what a store gets: plans of targets, bases fitted, tails cut off."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from labelgen.basis import CROPS_A_DIMENSION, CropSample, Fitted, Rows, fit_basis, gather_moments
from labelgen.extract.base import HEADS, Sources, TappedTeacher, find_sources
from labelgen.extract.features import probe_batch
from labelgen.extract.tokens import TOKENS, tail_file
from labelgen.head_encodings import head_encoding, measure_top_k
from labelgen.target_options import (
    DEFAULT_FEATURE_RANK,
    FULL_RANK,
    TargetOptions,
    default_token_rank,
)
from labelgen.target_plans import TargetPlan, split_mean
from storage.errors import UsageError
from storage.targets.dense import dense_record
from storage.targets.features import feature_record
from storage.targets.heads import HeadSpec, head_record
from storage.targets.tokens import AFFINE, TAIL_FILE, token_record
from trainer.models.feature_tap import FEATURE

if TYPE_CHECKING:
    import threading

    from labelgen.teacher import Teacher

__all__ = ["TargetOptions", "TargetPlan", "plan_targets"]

Array = npt.NDArray[Any]

_LOOKED_FOR = {"features": FEATURE, "heads": HEADS, "tokens": TOKENS}  # in the network


def plan_targets(
    teacher: Teacher,
    options: TargetOptions,
    sample: CropSample,
    num_views: int,
    stop: threading.Event | None = None,
) -> list[TargetPlan]:
    """Plans of the targets asked for; bases are fitted in one pass over the sample.

    Args:
        num_views: of the store.
    Raises:
        UsageError: a rank beyond the teacher's width, or more views than there are.
        TeacherError: the teacher can't give what is wanted, or gives NaN.
        TeachonceError: no image of the sample can be read.
        StoppedError: `stop` was set.
    """
    wanted = options.wanted
    views = {kind: options.views_of(kind, num_views) for kind in wanted}
    kinds = [_LOOKED_FOR[kind] for kind in wanted if kind in _LOOKED_FOR]
    sources = find_sources(teacher, kinds) if kinds else Sources()
    maker = _Maker(teacher, options, sources, views, sample, stop)
    fitted = maker.fit()
    return [maker.plan(kind, fitted) for kind in wanted]


class _Maker:
    """Makes plans of one teacher's targets."""

    def __init__(
        self,
        teacher: Teacher,
        options: TargetOptions,
        sources: Sources,
        views: Mapping[str, int],
        sample: CropSample,
        stop: threading.Event | None,
    ) -> None:
        self._teacher, self._options, self._sources = teacher, options, sources
        self._views, self._sample, self._stop = views, sample, stop
        self._ranks: dict[str, int] = {}
        if sources.feature:
            rank, width = options.feature_rank, sources.feature.width
            self._ranks[FEATURE] = self._rank("--feature-rank", rank, DEFAULT_FEATURE_RANK, width)
        if sources.tokens:
            width = sources.tokens.width
            rank = width if options.token_rank == FULL_RANK else options.token_rank
            self._ranks[TOKENS] = self._rank("--token-rank", rank, default_token_rank(width), width)

    def _rank(self, option: str, rank: int | None, default: int, width: int) -> int:
        if rank is not None and rank > width:
            raise UsageError(
                f"{option} is {rank}, but teacher {self._teacher.spec.canonical} has {width} "
                f"dimensions there: ask for at most {width}"
            )
        return min(default, width) if rank is None else rank

    def fit(self) -> Fitted | None:
        """Moments of what needs a basis; None where nothing does."""
        rows: dict[str, Rows] = {}
        needed = []
        if self._sources.feature:
            rows[FEATURE] = _feature_rows
            needed.append(CROPS_A_DIMENSION * self._sources.feature.width)
        tokens = self._sources.tokens
        if tokens and self._ranks[TOKENS] < tokens.width:
            rows[TOKENS] = _token_rows
            count = tokens.grid[0] * tokens.grid[1]
            needed.append(-(-CROPS_A_DIMENSION * tokens.width // count))
        if not rows:
            return None
        extractor = TappedTeacher(self._teacher, self._sources, rows)
        try:
            return gather_moments(
                self._teacher,
                extractor,
                self._sample,
                rows,
                crops_needed=max(needed),
                stop=self._stop,
            )
        finally:
            extractor.close()

    def plan(self, kind: str, fitted: Fitted | None) -> TargetPlan:
        """The plan of one kind of target."""
        name: str = getattr(self._options, kind) or self._teacher.spec.name
        common: dict[str, Any] = {
            "name": name,
            "teacher": self._teacher.spec.name,
            "views": self._views[kind],
        }
        make = {
            "features": self._features,
            "heads": self._heads,
            "tokens": self._tokens,
            "dense": self._dense,
        }
        return make[kind](common, fitted)

    def _features(self, common: dict[str, Any], fitted: Fitted | None) -> TargetPlan:
        assert self._sources.feature is not None and fitted is not None
        options = self._options
        basis = fit_basis(fitted.moments[FEATURE], self._ranks[FEATURE])
        constants: dict[str, Any] = {
            "mean": basis.mean, "basis": basis.vectors, "spectrum": basis.spectrum,
        }  # fmt: skip
        scaled = options.feature_space == "y"
        record = feature_record(
            **common, **constants, **self._fitted_on(fitted), layer=self._sources.feature.layer,
            space=options.feature_space, encoding="int8" if scaled else "fp16",
            temperature=options.power_temperature if scaled else None,
            power=options.power if scaled else None,
        )  # fmt: skip
        return TargetPlan(record, constants)

    def _heads(self, common: dict[str, Any], fitted: Fitted | None) -> TargetPlan:
        assert self._sources.heads is not None
        layers = self._sources.heads.layers
        specs = self._head_specs(layers)
        constants: dict[str, Array] = {}
        for spec in specs:
            if spec.encoding == "pooled":
                constants[f"{spec.name}_weight"] = _numbers(layers[spec.name].weight)
                constants[f"{spec.name}_bias"] = _bias(layers[spec.name])
        record = head_record(
            **common, rotations=self._options.rotations, heads=specs, weights=constants
        )
        return TargetPlan(record, constants)

    def _head_specs(self, layers: Mapping[str, nn.Linear]) -> list[HeadSpec]:
        options = self._options
        kept = {
            name: head_encoding(options, layer.in_features, layer.out_features)
            for name, layer in layers.items()
        }
        counts = {name: one.k for name, one in kept.items() if one.k is not None}
        measured = (
            measure_top_k(
                self._teacher, self._sources, counts, options.rotations, self._sample, self._stop
            )
            if counts
            else {}
        )
        return [
            HeadSpec(
                name=name,
                width=layer.in_features,
                classes=layer.out_features,
                encoding=kept[name].encoding,
                stored=kept[name].stored,
                top_k=measured.get(name),
            )
            for name, layer in layers.items()
        ]

    def _tokens(self, common: dict[str, Any], fitted: Fitted | None) -> TargetPlan:
        source = self._sources.tokens
        assert source is not None
        constants: dict[str, Any] = {}
        fitted_on: dict[str, Any] = {}
        if self._ranks[TOKENS] < source.width:
            assert fitted is not None
            basis = fit_basis(fitted.moments[TOKENS], self._ranks[TOKENS], centred=False)
            constants = {"basis": basis.vectors, "spectrum": basis.spectrum}
            fitted_on = self._fitted_on(fitted)
        settings, files = None, {}
        if self._options.tail:
            probe = probe_batch(self._teacher)
            settings, files[TAIL_FILE] = tail_file(self._teacher, source, probe)
        encoding = self._options.token_encoding
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        record = token_record(
            **common, **constants, **fitted_on, layer=source.layer, grid=source.grid,
            width=source.width, mean_encoding="fp32" if encoding == "fp32" else "fp16",
            remainder_encoding=encoding, tail_sha256=digests.get(TAIL_FILE), tail_settings=settings,
            logits=AFFINE if source.affine else None,
        )  # fmt: skip
        return TargetPlan(record, constants, files)

    def _dense(self, common: dict[str, Any], fitted: Fitted | None) -> TargetPlan:
        classes, encoding = self._teacher.spec.num_classes, self._options.dense_encoding
        return TargetPlan(dense_record(**common, classes=classes, encoding=encoding), {})

    def _fitted_on(self, fitted: Fitted) -> dict[str, Any]:
        return {
            "basis_images": fitted.images,
            "basis_views": fitted.views,
            "basis_seed": self._sample.seed,
        }


def _feature_rows(outputs: Mapping[str, Tensor]) -> Tensor:
    return outputs[FEATURE]


def _token_rows(outputs: Mapping[str, Tensor]) -> Tensor:
    return split_mean(outputs[TOKENS])[1].flatten(0, 1)


def _bias(layer: nn.Linear) -> Array:
    return np.zeros(layer.out_features, np.float32) if layer.bias is None else _numbers(layer.bias)


def _numbers(values: Tensor) -> Array:
    return values.detach().float().cpu().numpy()
