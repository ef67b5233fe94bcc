"""Everything a card says, from the sealed store alone and what the user states."""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import dataclass
from typing import Any

from storage.card.licences import Licences
from storage.dictionary import default_codec
from storage.errors import StoreError
from storage.format import StoreSpec, TeacherRecord
from storage.info import store_info
from storage.manifest import Manifest, read_manifest
from storage.store import MANIFEST, LabelStore
from storage.views import PaddedCrop, RandomResizedCrop

DEFAULT_RATIO = (0.75, 4 / 3)


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card says.

    name: title of the store; images_from: where the images can be had (a URL or a name).
    command: the `labelgen run` that makes the store, None where there is none.
    gaps: what the command can't say, so that nobody believes it is enough.
    """

    name: str
    spec: StoreSpec
    info: dict[str, Any]
    manifest: Manifest
    manifest_sha256: str
    manifest_bytes: int
    licences: Licences
    images_from: str | None
    url: str | None
    command: str | None
    gaps: tuple[str, ...]
    origin: dict[str, Any] | None

    @property
    def imported(self) -> dict[str, Any] | None:
        """What is known of an imported store's archive."""
        found: dict[str, Any] | None = self.spec.dataset.get("imported")
        return found


def card_facts(
    store: LabelStore,
    licences: Licences,
    *,
    name: str | None = None,
    images_from: str | None = None,
    url: str | None = None,
) -> CardFacts:
    """Collect a card's facts.

    Args:
        url: where the store will be found.
    Raises:
        StoreError: the store isn't sealed.
    """
    if not store.is_sealed:
        raise StoreError(
            f"{store.path} is not sealed: a card states its Merkle root, so close it with "
            "`labelstore seal` first"
        )
    data = (store.path / MANIFEST).read_bytes()
    command, gaps = labelgen_command(store)
    origin = store.attributes.get("origin")
    return CardFacts(
        name=name or store.path.resolve().name.removesuffix(".zarr"),
        spec=store.spec,
        info=store_info(store),
        manifest=read_manifest(store.path),
        manifest_sha256=hashlib.sha256(data).hexdigest(),
        manifest_bytes=len(data),
        licences=licences,
        images_from=images_from,
        url=url,
        command=command,
        gaps=tuple(gaps),
        origin={k: v for k, v in origin.items() if k != "ancestors"}
        if isinstance(origin, dict)
        else None,
    )


def labelgen_command(store: LabelStore) -> tuple[str | None, list[str]]:
    """The command that makes this store again, and what it can't say."""
    spec = store.spec
    if spec.dataset.get("imported"):
        return None, ["the labels were imported: no command of ours makes them"]
    if store.attributes.get("origin"):
        return None, ["the store was made from others; see where it comes from"]
    if len(spec.teachers) != 1:
        return None, [f"{len(spec.teachers)} teachers; `labelgen run` labels with one at a time"]
    teacher = next(iter(spec.teachers.values()))
    gaps: list[str] = []
    words = ["labelgen", "run", *_teacher_words(teacher, gaps), "--data", "IMAGES"]
    words += ["--out", "store.zarr", "--crops", str(spec.num_views)]
    words += ["--top-k", str(teacher.codec.top_k), *_view_words(spec, gaps)]
    words += ["--batch-size", str(teacher.batch_size), "--block-images", str(spec.block_images)]
    words += ["--precision", teacher.precision, "--seed", str(spec.seed)]
    if teacher.codec != default_codec(teacher.num_classes, teacher.codec.top_k, spec.num_views):
        gaps.append(f"the codec, {json.dumps(teacher.codec.to_json(), sort_keys=True)}")
    return shlex.join(words), gaps


def _teacher_words(teacher: TeacherRecord, gaps: list[str]) -> list[str]:
    arch, found, file = teacher.spec.partition("@file:")
    words = ["--teacher", f"file:{file}", "--arch", arch] if found else ["--teacher", teacher.spec]
    if found:
        gaps.append(f"the weights file {file} (tensor digest {teacher.digest})")
    words += ["--size", str(teacher.input_size), "--interpolation", teacher.interpolation]
    return [
        *words,
        "--mean", *(repr(value) for value in teacher.mean),
        "--std", *(repr(value) for value in teacher.std),
    ]  # fmt: skip


def _view_words(spec: StoreSpec, gaps: list[str]) -> list[str]:
    sampler = spec.sampler
    if isinstance(sampler, PaddedCrop):
        return ["--views", sampler.kind, "--padding", str(sampler.padding)]
    if isinstance(sampler, RandomResizedCrop):
        if sampler.ratio != DEFAULT_RATIO:
            gaps.append(f"aspect ratios {sampler.ratio[0]} to {sampler.ratio[1]}")
        if sampler.flip_probability not in (0.0, 0.5):
            gaps.append(f"flip probability {sampler.flip_probability}")
        flip = "--flip" if sampler.flip_probability else "--no-flip"
        low, high = sampler.scale
        return ["--views", sampler.kind, "--scale", repr(low), repr(high), flip]
    gaps.append(f"views of kind {sampler.kind}")
    return []
