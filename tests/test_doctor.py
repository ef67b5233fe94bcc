"""Faults put into a path, an image folder or a store are named by the doctor; nothing else is."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import make_image, write_folder
from labelling import tiny_teacher
from PIL import Image, ImageOps
from test_labelgen_cli import run as labelgen

from labelgen.doctor.crops import CanaryCrop, small_crops, stored_canaries
from labelgen.doctor.diagnosis import Finding, decoder_findings, diagnose
from labelgen.doctor.environment import check_machine, check_room
from labelgen.doctor.examine import examine
from labelgen.doctor.paths import PathFailed, replay_loader, replay_pillow, write_request
from labelgen.doctor.recipes import Recipe, hypotheses, make
from labelgen.doctor.resampling import resize
from labelgen.run import generate
from storage import augment, pixels
from storage.augment import Augment
from storage.colour_draws import ColourJitter
from storage.manifest import read_manifest
from storage.pixels import decode_rgb, open_image
from storage.store import LabelStore
from storage.views import PaddedCrop
from trainer.replay import canaries as loaders
from trainer.replay import turbojpeg

SETTINGS: dict[str, Any] = {"crops": 6, "batch_size": 8, "block_images": 4, "workers": 1}
Pixels = np.ndarray


def images_with_exif(root: Path) -> Path:
    """12 JPEGs with subsampled chroma; one in three says that it is to be turned."""
    write_folder(root)
    for number, path in enumerate(sorted(root.rglob("*.jpg"))):
        if number % 3 == 0:
            exif = Image.Exif()
            exif[274] = 6
            image = Image.open(path).convert("RGB")
            image.save(path, quality=90, exif=exif)
    return root


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/ and three stores of them: plain, coloured and padded (of images of one size)."""
    root = tmp_path_factory.mktemp("doctor")
    teacher = tiny_teacher(root)
    folder = images_with_exif(root / "images")
    generate(teacher, folder, root / "plain", **SETTINGS)
    colours = Augment((ColourJitter(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.2),))
    generate(teacher, folder, root / "coloured", augment=colours, **SETTINGS)
    (root / "small").mkdir()
    for seed in range(6):
        make_image(seed, 16, 16).save(root / "small" / f"{seed}.png")
    generate(teacher, root / "small", root / "padded", sampler=PaddedCrop(padding=3), **SETTINGS)
    return root


def findings(store: Path, **options: Any) -> list[Finding]:
    opened = LabelStore.open(store)
    folder = options.pop("data", opened.local_data_folder())
    return examine(opened, folder, paths=("pillow",), **options).findings


def causes(store: Path, **options: Any) -> list[str]:
    return [finding.cause for finding in findings(store, **options)]


# --- decoders ---------------------------------------------------------------------------------


def by_turbojpeg(flags: int) -> Callable[[bytes], Image.Image]:
    def decode(data: bytes) -> Image.Image:
        header = open_image(data)
        if header.format != "JPEG" or header.mode == "CMYK":
            return decode_rgb(data)
        library, source = turbojpeg.load(), np.frombuffer(data, np.uint8)
        out = np.empty((header.height, header.width, 3), np.uint8)
        handle = library.init()
        library.decompress(handle, source.ctypes.data, source.size, out.ctypes.data,
                           header.width, 0, header.height, 0, flags)  # fmt: skip
        library.destroy(handle)
        return Image.fromarray(out)

    return decode


def raw(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def encoded_again(quality: int) -> Callable[[bytes], Image.Image]:
    def decode(data: bytes) -> Image.Image:
        buffer = io.BytesIO()
        decode_rgb(data).save(buffer, "JPEG", quality=quality)
        return decode_rgb(buffer.getvalue())

    return decode


def only(mode: str, wrong: Callable[[Image.Image], Image.Image]) -> Callable[[bytes], Image.Image]:
    """A decoder that is wrong for images of one mode."""

    def decode(data: bytes) -> Image.Image:
        image = raw(data)
        return wrong(image) if image.mode.startswith(mode) else decode_rgb(data)

    return decode


def on_white(image: Image.Image) -> Image.Image:
    sheet = Image.new("RGB", image.size, "white")
    sheet.paste(image, mask=image.getchannel("A"))
    return sheet


DECODERS: dict[str, tuple[str, Callable[[bytes], Image.Image]]] = {
    "fast DCT": ("fast-dct", by_turbojpeg(2048)),
    "plain chroma upsampling": ("plain-upsampling", by_turbojpeg(4096 | 256)),
    "EXIF rotation": ("exif-rotated", lambda data: ImageOps.exif_transpose(raw(data)).convert("RGB")
                      if raw(data).getexif().get(274) else decode_rgb(data)),
    "BGR": ("bgr", lambda data: Image.fromarray(np.asarray(decode_rgb(data))[..., ::-1].copy())),
    "grey": ("grey", lambda data: decode_rgb(data).convert("L").convert("RGB")),
    "JPEG 90 again": ("re-encoded", encoded_again(90)),
    "JPEG 75 again": ("re-encoded", encoded_again(75)),
    "CMYK inverted": ("cmyk-inverted", only("CMYK", lambda i: ImageOps.invert(i.convert("RGB")))),
    "alpha on white": ("alpha-on-white", only("RGBA", on_white)),
    "16 bits clipped": ("16-bit-clipped", only("I", lambda i: Image.fromarray(
        np.asarray(i).clip(0, 255).astype(np.uint8)).convert("RGB"))),
    "palette index": ("palette-index", only("P", lambda i: Image.fromarray(np.asarray(i))
                                            .convert("RGB"))),
}  # fmt: skip


@pytest.mark.parametrize("fault", DECODERS)
def test_a_wrong_decoder_is_named(
    labelled: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    cause, decode = DECODERS[fault]
    monkeypatch.setattr(pixels, "decode_rgb", decode)
    assert causes(labelled / "plain") == [cause]


# --- filters and geometry ---------------------------------------------------------------------

Cut = Callable[..., Pixels]


def resized_by(resize_cut: Callable[[Pixels, int, str], Pixels]) -> Cut:
    """`cut_view` with another resize."""

    def cut(image: Image.Image, box: Any, flip: bool, size: int, interpolation: str) -> Pixels:
        top, left, height, width = map(int, box)
        view = np.asarray(image)[top : top + height, left : left + width]
        if view.shape[:2] != (size, size):
            view = resize_cut(np.ascontiguousarray(view), size, interpolation)
        return np.ascontiguousarray(view[:, ::-1] if flip else view)

    return cut


def by_opencv(flag: int) -> Cut:
    return resized_by(lambda view, size, _: cv2.resize(view, (size, size), interpolation=flag))


def by_pillow(name: str) -> Cut:
    return resized_by(lambda view, size, _: np.asarray(
        Image.fromarray(view).resize((size, size), getattr(Image.Resampling, name))))  # fmt: skip


def by_torch(view: Pixels, size: int, interpolation: str) -> Pixels:
    if interpolation != "bilinear":  # one mistake at a time
        image, box = Image.fromarray(view), (0, 0, *view.shape[:2])
        return pixels.cut_view(image, box, False, size, interpolation)
    floats = torch.from_numpy(view.copy()).permute(2, 0, 1)[None].float()
    out = torch.nn.functional.interpolate(floats, (size, size), mode="bilinear", antialias=False)
    return out.round().clamp(0, 255).byte()[0].permute(1, 2, 0).numpy()


def wide_weights(view: Pixels, size: int, interpolation: str) -> Pixels:
    """Pillow's arithmetic: int32 weights of 22 bits, written as its source has it."""
    reach = {"bilinear": 1, "bicubic": 2}[interpolation]

    def kernel(x: float) -> float:
        x = abs(x)
        if reach == 1:
            return max(1 - x, 0.0)
        a = -0.5
        if x < 1:
            return ((a + 2) * x - (a + 3)) * x * x + 1
        return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0

    def axis(lines: Pixels) -> Pixels:  # [n, m, 3] -> [size, m, 3]
        n = len(lines)
        scale = n / size
        wider = max(scale, 1.0)
        out = np.empty((size, *lines.shape[1:]), np.uint8)
        for i in range(size):
            centre = (i + 0.5) * scale
            low = max(int(centre - reach * wider + 0.5), 0)
            high = min(int(centre + reach * wider + 0.5), n)
            taps = [kernel((p - centre + 0.5) / wider) for p in range(low, high)]
            total = sum(taps)
            fixed = [int(np.copysign(0.5, t) + t / total * (1 << 22)) for t in taps]
            sums = sum(
                f * lines[p].astype(np.int64) for f, p in zip(fixed, range(low, high), strict=True)
            )
            out[i] = ((sums + (1 << 21)) >> 22).clip(0, 255)
        return out

    return axis(axis(view.transpose(1, 0, 2)).transpose(1, 0, 2))


def moved(change: Callable[[tuple[int, ...], Image.Image], tuple[int, ...]]) -> Cut:
    """`cut_view` of another box."""

    def cut(image: Image.Image, box: Any, *rest: Any) -> Pixels:
        return pixels.cut_view(image, change(tuple(map(int, box)), image), *rest)

    return cut


def around(image: Image.Image, box: Any, flip: bool, size: int, interpolation: str) -> Pixels:
    top, left, height, width = map(int, box)
    if (height, width) == (size, size):
        return pixels.cut_view(image, box, flip, size, interpolation)
    view = np.asarray(image.resize((size, size), pixels.INTERPOLATIONS[interpolation],
                                   box=(left, top, left + width, top + height)))  # fmt: skip
    return view[:, ::-1] if flip else view


def flipped(change: Callable[..., Pixels]) -> Cut:
    """`cut_view` with another flip: `change` takes a function (image, flip) and both."""

    def cut(image: Image.Image, box: Any, flip: bool, *rest: Any) -> Pixels:
        return change(lambda i, f: pixels.cut_view(i, box, f, *rest), image, flip)

    return cut


def one_down(box: tuple[int, ...], image: Image.Image) -> tuple[int, ...]:
    top = box[0] + 1 if box[0] + box[2] < image.height else box[0]
    return (top, *box[1:])


CUTS: dict[str, tuple[str, Cut]] = {
    "INTER_AREA": ("inter-area", by_opencv(cv2.INTER_AREA)),
    "INTER_LINEAR": ("antialias-off", by_opencv(cv2.INTER_LINEAR)),
    "torch without antialias": ("antialias-off", resized_by(by_torch)),
    "Pillow": ("pillow", resized_by(wide_weights)),
    "nearest": ("interpolation-nearest", by_pillow("NEAREST")),
    "lanczos": ("interpolation-lanczos", by_pillow("LANCZOS")),
    "hamming": ("interpolation-hamming", by_pillow("HAMMING")),
    "box filter": ("interpolation-box", by_pillow("BOX")),
    "resize(box=)": ("box-filtering", around),
    "one pixel down": ("shift", moved(one_down)),
    "whole image": ("box-ignored", moved(lambda box, i: (0, 0, i.height, i.width))),
    "centre": ("box-ignored", moved(
        lambda box, i: ((i.height - box[2]) // 2, (i.width - box[3]) // 2, *box[2:]))),
    "no flip": ("flip-missing", flipped(lambda cut, image, flip: cut(image, False))),
    "all flipped": ("flip-always", flipped(lambda cut, image, flip: cut(image, True))),
    "opposite flip": ("flip-opposite", flipped(lambda cut, image, flip: cut(image, not flip))),
    "flip before the cut": ("flip-before", flipped(
        lambda cut, image, flip: cut(ImageOps.mirror(image) if flip else image, False))),
    "upside down": ("flip-vertical", flipped(
        lambda cut, image, flip: cut(image, False)[::-1] if flip else cut(image, False))),
}  # fmt: skip


@pytest.mark.parametrize("fault", CUTS)
def test_a_wrong_filter_box_or_flip_is_named(
    labelled: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    cause, cut = CUTS[fault]
    monkeypatch.setattr(augment, "cut_view", cut)
    found = causes(labelled / "plain")
    assert found[:1] == [cause] and all(each.startswith(cause) for each in found)


@pytest.mark.parametrize("name", ["plain", "coloured", "padded"])
def test_a_machine_that_keeps_the_contract_gets_no_false_alarm(labelled: Path, name: str) -> None:
    report = examine(
        LabelStore.open(labelled / name), LabelStore.open(labelled / name).local_data_folder(),
        paths=("pillow",),
    )  # fmt: skip
    assert report.findings == [] and report.exit_code == 0
    assert report.canaries > 12 and report.small == 16 and "nothing is wrong" in report.text()


def test_colours_that_are_not_replayed_are_named(
    labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replay(image: Image.Image, *view: Any) -> Pixels:
        return pixels.cut_view(image, *view[:4])

    monkeypatch.setattr(augment, "replay_view", replay)
    assert causes(labelled / "coloured") == ["draws-ignored"]


@pytest.mark.parametrize(
    ("cause", "pad"),
    [
        ("padding-missing", lambda image, padding: image),
        ("padding-edge", lambda image, padding: Image.fromarray(
            np.pad(np.asarray(image), ((padding,) * 2, (padding,) * 2, (0, 0)), mode="edge"))),
    ],
)  # fmt: skip
def test_wrong_padding_is_named(
    labelled: Path, monkeypatch: pytest.MonkeyPatch, cause: str, pad: Any
) -> None:
    monkeypatch.setattr(pixels, "pad_image", pad)
    assert causes(labelled / "padded") == [cause]


def test_the_view_beside_the_right_one_is_named(labelled: Path) -> None:
    store = LabelStore.open(labelled / "plain")
    folder = store.local_data_folder()
    assert folder is not None
    crops = examine_crops(store, folder)
    shifted = [crop for crop in crops if crop.after is not None]
    made = [make(crop, Recipe(view="after")) for crop in shifted]
    found = diagnose("elsewhere", shifted, made)  # type: ignore[arg-type]
    assert [each.cause for each in found] == ["view-number"] and "after" in found[0].text


def test_boxes_read_in_another_order_are_named(labelled: Path) -> None:
    store = LabelStore.open(labelled / "plain")
    folder = store.local_data_folder()
    assert folder is not None
    crops, made = [], []
    for crop in examine_crops(store, folder):
        left, top, width, height = crop.view.box
        image = decode_rgb(crop.data)
        if top + height <= image.height and left + width <= image.width:
            crops.append(crop)
            made.append(pixels.cut_view(image, (top, left, height, width), crop.view.flip, 16))
    assert [each.cause for each in diagnose("elsewhere", crops, made)] == ["box-order"]


def examine_crops(store: LabelStore, folder: Path) -> list[CanaryCrop]:
    from labelgen.doctor.images import check_images

    canaries = stored_canaries(store)
    assert canaries is not None
    return check_images(store, canaries, folder).crops


def test_two_faults_at_once_are_both_named(labelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "decode_rgb", DECODERS["BGR"][1])
    monkeypatch.setattr(augment, "cut_view", CUTS["resize(box=)"][1])
    text = " ".join(causes(labelled / "plain"))
    assert "bgr" in text and "box-filtering" in text and "unknown" not in text


def test_crops_of_another_size_refusals_and_riddles_are_said(labelled: Path) -> None:
    crops = small_crops()
    small = [np.zeros((5, 5, 3), np.uint8)] * len(crops)
    assert [each.cause for each in diagnose("p", crops, small)] == ["size"]
    refused = diagnose("p", crops, ["no such codec"] * len(crops))
    assert [each.cause for each in refused] == ["refused"] and "no such codec" in refused[0].text
    noise = [np.random.default_rng(i).integers(0, 256, (c.size, c.size, 3), np.uint8)
             for i, c in enumerate(crops)]  # fmt: skip
    assert [each.cause for each in diagnose("p", crops, noise)] == ["unknown"]


def test_a_store_that_was_cut_by_another_path_is_told_from_a_wrong_machine() -> None:
    crops = small_crops()
    from dataclasses import replace

    from storage.canaries import crop_digest

    area = [replace(c, pixels=crop_digest(make(c, Recipe(kind="area")))) for c in crops]
    changed = [c for c, old in zip(area, crops, strict=True) if c.pixels != old.pixels]
    found = diagnose("pillow", changed, replay_pillow(changed))
    assert [each.cause for each in found] == ["store-inter-area"]


def test_another_decoder_on_this_machine_is_said_by_the_image_digests() -> None:
    from dataclasses import replace

    crops = small_crops()
    assert decoder_findings(crops) == []
    other = [replace(crop, image="0" * 64) for crop in crops]
    assert [each.cause for each in decoder_findings(other)] == ["decoder"]


# --- image folders ----------------------------------------------------------------------------


def first_image(root: Path) -> Path:
    return sorted(root.rglob("*.jpg"))[0]


def change_all(root: Path, change: Callable[[Path], None]) -> None:
    for path in sorted(root.rglob("*.jpg")):
        change(path)


def save_other(root: Path) -> None:
    path = first_image(root)
    image = decode_rgb(path.read_bytes())
    make_image(4242, image.height, image.width).save(path, quality=90)


def swap(root: Path) -> None:
    one, other = sorted(root.rglob("*.jpg"))[:2]
    data = one.read_bytes(), other.read_bytes()
    one.write_bytes(data[1])
    other.write_bytes(data[0])


def rewritten(path: Path) -> None:
    """A comment after the first marker: other bytes, the same pixels."""
    data = path.read_bytes()
    path.write_bytes(data[:2] + b"\xff\xfe\x00\x07hello" + data[2:])


FOLDERS: dict[str, Callable[[Path], None]] = {
    "image-missing": lambda root: first_image(root).unlink(),
    "images-changed": save_other,
    "images-swapped": swap,
    "images-damaged": lambda root: first_image(root).write_bytes(b"\xff\xd8\xff"),
    "images-rewritten": lambda root: change_all(root, rewritten),
    "images-re-encoded": lambda root: change_all(
        root, lambda path: decode_rgb(path.read_bytes()).save(path, quality=80)),
    "images-resized": lambda root: change_all(root, lambda path: (
        image := decode_rgb(path.read_bytes())).resize(
            (image.width * 2, image.height * 2)).save(path)),
    "images-rotated": lambda root: change_all(
        root, lambda path: decode_rgb(path.read_bytes()).rotate(90, expand=True).save(path)),
    "class-order": lambda root: (root / "class1").rename(root / "zebra"),
}  # fmt: skip


@pytest.mark.parametrize("cause", FOLDERS)
def test_what_happened_to_the_images_is_named(labelled: Path, tmp_path: Path, cause: str) -> None:
    shutil.copytree(labelled / "images", tmp_path / "images")
    FOLDERS[cause](tmp_path / "images")
    assert causes(labelled / "plain", data=tmp_path / "images") == [cause]


def test_another_folder_is_named_and_not_every_image_of_it(labelled: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "other", per_class=5, sides=(91, 120))
    assert causes(labelled / "plain", data=tmp_path / "other") == ["wrong-folder"]
    (tmp_path / "flat").mkdir()
    make_image(1, 30, 30).save(tmp_path / "flat" / "a.png")
    assert causes(labelled / "plain", data=tmp_path / "flat") == ["wrong-folder"]


def test_a_store_of_another_root_is_named(labelled: Path) -> None:
    root = read_manifest(labelled / "plain").root
    assert causes(labelled / "plain", root=root[:16].upper()) == []
    assert causes(labelled / "plain", root="0" * 64) == ["other-root"]


# --- machine and command ----------------------------------------------------------------------


def test_pillow_in_pillow_simd_s_place_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import PIL

    assert check_machine() == []
    monkeypatch.setattr(PIL, "__version__", "12.1.1")
    assert [each.cause for each in check_machine()] == ["pillow-not-simd"]


def test_a_store_that_cannot_be_finished_is_named(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(labelled / "plain", tmp_path / "s")
    (tmp_path / "s" / "manifest.json").unlink()
    store = LabelStore.open(tmp_path / "s")
    assert check_room(store) == []
    monkeypatch.setattr("os.access", lambda path, mode: False)
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, 1))  # type: ignore[attr-defined]
    assert [each.cause for each in check_room(store)] == ["not-writable", "disk-full"]
    assert check_room(LabelStore.open(labelled / "plain")) == []  # sealed: read only is fine


@pytest.mark.parametrize("loader", ["torch", pytest.param("ffcv", marks=pytest.mark.long)])
def test_a_loader_keeps_the_contract_with_padding_and_colours(labelled: Path, loader: str) -> None:
    crops = small_crops()
    for name in ("coloured", "padded"):
        store = LabelStore.open(labelled / name)
        folder = store.local_data_folder()
        assert folder is not None
        crops += examine_crops(store, folder)[:8]
    made = replay_loader(crops, loader)
    assert isinstance(made, list), made
    assert diagnose(loader, crops, made) == []


def test_a_fault_inside_a_loader_is_named(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from labelgen.doctor.paths import read_answer

    crops = small_crops()
    write_request(tmp_path, crops)
    monkeypatch.setattr("trainer.replay.reference.decode_rgb", DECODERS["fast DCT"][1])
    loaders.replay("torch", tmp_path)
    found = diagnose("torch", crops, read_answer(tmp_path, len(crops)))
    assert [each.cause for each in found] == ["fast-dct"]


def test_a_loader_that_cannot_run_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = replay_loader(small_crops(), "no-such-loader")
    assert isinstance(failed, PathFailed) and "usage" in failed.reason


def test_the_command_says_one_line_a_cause_and_ends_with_1(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ("doctor", "--labels", labelled / "plain", "--path", "pillow")
    assert labelgen(monkeypatch, *arguments) == 0
    assert "nothing is wrong" in capsys.readouterr().out
    monkeypatch.setattr(pixels, "decode_rgb", DECODERS["BGR"][1])
    assert labelgen(monkeypatch, *arguments) == 1
    assert sum("[bgr]" in line for line in capsys.readouterr().out.splitlines()) == 1
    assert labelgen(monkeypatch, *arguments, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"] and found["findings"][0]["cause"] == "bgr"
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert labelgen(monkeypatch, "doctor", "--path", "pillow") == 0  # no store: built-in ones
    assert labelgen(monkeypatch, "doctor", "--data", labelled) == 2
    assert labelgen(monkeypatch, *arguments, "--data", tmp_path / "nowhere") == 2


def test_looking_at_pillow_alone_loads_no_torch(labelled: Path) -> None:
    code = (
        "import sys; from labelgen.cli import cli\n"
        f"cli(['doctor', '--labels', {str(labelled / 'plain')!r}, '--path', 'pillow'], "
        "standalone_mode=False)\n"
        "sys.exit('torch' in sys.modules)"
    )
    root = Path(__file__).resolve().parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


def test_the_reference_filter_is_the_contract_s() -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        height, width, size = (int(v) for v in rng.integers(1, 90, 3))
        view = rng.integers(-200, 456, (height, width, 3)).clip(0, 255).astype(np.uint8)
        for name in pixels.INTERPOLATIONS:
            box = (0, 0, height, width)
            expected = pixels.cut_view(Image.fromarray(view), box, False, size, name)
            assert np.array_equal(resize(view, size, name), expected)


def test_every_mistake_has_a_name_a_text_and_a_way_out() -> None:
    known = hypotheses()
    assert len({each.cause for each in known}) >= 30
    assert all(each.what and each.way_out and each.recipe != Recipe() for each in known)
