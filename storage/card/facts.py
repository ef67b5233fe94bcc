"""Everything a card says, from the sealed store alone and what the user states."""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import dataclass
from typing import Any

from storage.card.licences import Licences
from storage.card.view_words import augment_words, view_words
from storage.dictionary import default_codec
from storage.errors import StoreError
from storage.format import StoreSpec
from storage.info import store_info
from storage.manifest import Manifest, read_manifest
from storage.remote.location import is_remote
from storage.store import MANIFEST, LabelStore
from storage.teacher_record import TeacherRecord


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
        name=name or _title(store),
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


def _title(store: LabelStore) -> str:
    """The last part of the store's folder or address."""
    place = store.place if is_remote(store.place) else store.path.resolve().name
    return place.rstrip("/").rpartition("/")[2].removesuffix(".zarr")


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
    words += ["--top-k", str(teacher.codec.top_k), *view_words(spec, gaps)]
    words += augment_words(spec.augment, gaps)
    words += ["--batch-size", str(teacher.batch_size), "--block-images", str(spec.block_images)]
    words += ["--precision", teacher.precision, "--seed", str(spec.seed)]
    words += ["--compile"] if teacher.compiled else []
    gaps += [f"the target {path}, whose options its settings tell" for path in sorted(spec.targets)]
    if teacher.codec != default_codec(teacher.num_classes, teacher.codec.top_k, spec.num_views):
        gaps.append(f"the codec, {json.dumps(teacher.codec.to_json(), sort_keys=True)}")
    return shlex.join(words), gaps


def _teacher_words(teacher: TeacherRecord, gaps: list[str]) -> list[str]:
    arch, found, file = teacher.spec.partition("@file:")
    words = ["--size", str(teacher.input_size), "--interpolation", teacher.interpolation]
    if teacher.members:
        gaps += [f"the weights of {m['spec']} (tensor digest {m['digest']})"
                 for m in teacher.members if _is_local(m["spec"])]  # fmt: skip
        return ["--teacher", teacher.spec, *words]
    named = ["--teacher", f"file:{file}", "--arch", arch] if found else ["--teacher", teacher.spec]
    if found:
        gaps.append(f"the weights file {file} (tensor digest {teacher.digest})")
    elif _is_local(teacher.spec):
        gaps.append(f"the folder of {teacher.spec} (tensor digest {teacher.digest})")
    if teacher.channel_order != "rgb":
        words += ["--channel-order", teacher.channel_order]
    if teacher.class_offset:
        words += ["--class-offset", str(teacher.class_offset)]
    return [
        *named,
        *words,
        "--mean", *(repr(value) for value in teacher.mean),
        "--std", *(repr(value) for value in teacher.std),
    ]  # fmt: skip


def _is_local(spec: str) -> bool:
    """Whether a teacher's weights lay on the machine that made the labels."""
    return "@file:" in spec or spec.startswith("local-dir:")
