"""What a store's labels lose against the teacher's dense output, measured on a fixed sample.

The block that holds a sampled crop compares its decoded label with the dense output while it has
both, and notes the divergences in its receipt; sealing summarises them. Which crops are sampled
depends on the store's shape only, so a run that was killed and resumed states the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.codecs import SoftLabels, TopKCodec, TopKLabels
from storage.dictionary import DictionaryCodec, ImageTail
from storage.temperature import soften_dense

SAMPLE_IMAGES = 256
SAMPLE_VIEWS = 4
TEMPERATURES = (1, 2, 4)
DIGITS = 6

PARTS = {
    "index": "ids", "place": "ids", "classes": "ids", "gap": "values", "fall": "values",
    "tail": "tail", "spread": "tail", "box": "boxes", "flip": "boxes", "crop": "boxes",
    "draw": "draws",
}  # fmt: skip

Floats = npt.NDArray[np.floating[Any]]
Divergences = dict[str, list[float]]  # by "<decoding> <temperature>", one for each sampled crop


@dataclass(frozen=True)
class LabelSample:
    """Dense outputs of some crops of a block.

    image, view: int [s], number in the block and view. log_probs: float32 [s, C].
    """

    image: npt.NDArray[np.intp]
    view: npt.NDArray[np.intp]
    log_probs: npt.NDArray[np.float32]


def sample_positions(
    num_images: int, num_views: int, rows: range
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Images (counted from the first of `rows`) and views of the sampled crops of a block.

    Up to SAMPLE_IMAGES images of the store and SAMPLE_VIEWS views of each, evenly spaced.
    """
    images = (
        np.arange(min(num_images, SAMPLE_IMAGES)) * num_images // min(num_images, SAMPLE_IMAGES)
    )
    views = np.arange(min(num_views, SAMPLE_VIEWS)) * num_views // min(num_views, SAMPLE_VIEWS)
    images = images[(images >= rows.start) & (images < rows.stop)] - rows.start
    return np.repeat(images, len(views)), np.tile(views, len(images))


def measure_sample(
    codec: TopKCodec, labels: TopKLabels, tails: ImageTail | None, sample: LabelSample
) -> Divergences:
    """KL(dense || decoded) of the sampled crops, in nats, at each temperature.

    `exact` is the exact top k with an even tail, `even` the decoded label with an even tail and
    `mean` (where there are mean tails) with the image's.

    Args:
        labels: [n, M, ...] of the block; tails: of its n images.
    """
    crops = sample.image, sample.view
    picked = TopKLabels(
        labels.index[crops][:, None], labels.code[crops][:, None], labels.tail[crops][:, None]
    )
    dense = np.exp(sample.log_probs.astype(np.float64))
    dense /= dense.sum(axis=-1, keepdims=True)
    index = picked.index[:, 0].astype(np.intp)
    kept = np.take_along_axis(dense, index, axis=-1)
    rest = np.maximum(1 - kept.sum(axis=-1), 0).astype(np.float32)
    kept = kept.astype(np.float32)
    decoded = {
        "exact": codec.dense(SoftLabels(picked.index[:, 0], kept, rest)),
        "even": codec.dense(picked)[:, 0],
    }
    if tails is not None and isinstance(codec, DictionaryCodec):
        theirs = ImageTail(tails.index[sample.image], tails.share[sample.image])
        decoded["mean"] = codec.dense_with_tail(picked, theirs)[:, 0]
    return {
        f"{name} {temperature}": _divergence(dense, probs, temperature)
        for name, probs in decoded.items()
        for temperature in TEMPERATURES
    }


def summarise_sample(
    blocks: Iterable[Divergences], sizes: Mapping[str, int], teacher: str, crops: int
) -> dict[str, Any] | None:
    """The certificate of one teacher's labels; None without a sample.

    Args:
        sizes: bytes of every file of the store; crops: that they hold.
    """
    joined: Divergences = {}
    for block in blocks:
        for name, values in block.items():
            joined.setdefault(name, []).extend(values)
    if not joined:
        return None
    found: dict[str, Any] = {
        "crops": len(next(iter(joined.values()))),
        "bytes_per_crop": bytes_by_part(
            {n: s for n, s in sizes.items() if n.startswith(("views/", f"labels/{teacher}/"))},
            crops,
        ),
        "kl": {},
    }
    for name, values in joined.items():
        decoding, temperature = name.split(" ")
        found["kl"].setdefault(temperature, {})[decoding] = _summary(np.array(values))
    for values in found["kl"].values():
        for decoding in ("even", "mean"):
            if decoding in values:
                excess = values[decoding]["mean"] - values["exact"]["mean"]
                values[decoding]["excess_mean"] = round(excess, DIGITS)
    return found


def bytes_by_part(sizes: Mapping[str, int], crops: int) -> dict[str, float]:
    """Bytes a crop of ids, values, tail, boxes, draws of augmentations, images, targets and
    metadata, from the files' sizes."""
    found: dict[str, int] = {}
    for name, size in sizes.items():
        part = _part(name)
        found[part] = found.get(part, 0) + size
    return {part: round(size / max(crops, 1), 3) for part, size in sorted(found.items())}


def certificate_lines(certificate: Mapping[str, Any]) -> list[str]:
    """The certificate for people."""
    lines = [f"fidelity on {certificate['crops']} crops, KL(dense || decoded) in nats:"]
    named = {"exact": "exact top-k, even tail", "even": "stored, even tail",
             "mean": "stored, mean tail"}  # fmt: skip
    for temperature, decodings in certificate["kl"].items():
        for decoding in filter(decodings.__contains__, named):
            values = decodings[decoding]
            excess = values.get("excess_mean")
            lines.append(
                f"  T {temperature}  {named[decoding]:<22} mean {values['mean']:.4f}, "
                f"p99 {values['p99']:.4f}, max {values['max']:.4f}"
                + (f", mean excess {excess:+.5f}" if excess is not None else "")
            )
    return lines


def _divergence(dense: Floats, decoded: Floats, temperature: float) -> list[float]:
    p = soften_dense(dense, temperature)
    q = soften_dense(decoded.astype(np.float64), temperature)
    logs = np.log(np.maximum(p, 1e-300)) - np.log(np.maximum(q, 1e-300))
    return [round(float(value), DIGITS) for value in (p * logs).sum(axis=-1)]


def _summary(values: npt.NDArray[np.float64]) -> dict[str, float]:
    return {
        "mean": round(float(values.mean()), DIGITS),
        "p99": round(float(np.percentile(values, 99)), DIGITS),
        "max": round(float(values.max()), DIGITS),
    }


def _part(name: str) -> str:
    if name.endswith("zarr.json"):
        return "metadata"
    if name.startswith("images/"):
        return "images"
    if not name.startswith(("labels/", "views/")):
        return "targets"
    return PARTS[name.split("/c/")[0].rsplit("/", 1)[-1]]
