"""A contact sheet as one HTML page, with every crop at its own pixels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from labelgen.preview.marks import badge_places, outline, scaled_box
from labelgen.preview.rows import Shown, ShownImage, ShownView
from labelgen.preview.sheet import encoded
from storage.page import Html, data_uri, element, page, void

PHOTO = 640  # longest side of a photo in the page
BADGE = (36, 32)  # in the photo's own units
STYLE = """
body { max-width: 104rem; }
.row { display: flex; gap: 1rem; align-items: flex-start; }
.photo { flex: 0 0 22rem; max-width: 100%; }
.photo svg { max-height: 24rem; }
.photo svg text { font: 600 23px system-ui, sans-serif; fill: #fff; }
.crops { flex: 1; display: grid; gap: .75rem;
  grid-template-columns: repeat(auto-fill, minmax(13.5rem, 1fr)); min-width: 0; }
.crop { padding: .5rem; max-width: 18rem; }
@media (max-width: 50rem) { .row { flex-wrap: wrap; } .photo { flex: 1 1 100%; } }
.crop img { display: block; width: 100%; height: auto; border: 3px solid; }
.small { image-rendering: pixelated; }
.head { display: flex; gap: .4rem; align-items: center; font-size: .75rem; margin-bottom: .3rem;
  white-space: nowrap; }
.badge { padding: 0 .45rem; border-radius: .2rem; color: #fff; font-weight: 600; }
.verdict { margin-left: auto; font-weight: 600; white-space: nowrap; }
.class { position: relative; display: flex; gap: .5rem; padding: 0 .3rem; margin-top: 2px;
  font-size: .85rem; }
.class .name, .class .share { position: relative; white-space: nowrap; }
.fill { position: absolute; inset: 0 auto 0 0;
  background: var(--soft); border-radius: .15rem; }
.own .fill { background: color-mix(in srgb, var(--good) 40%, transparent); }
.class .name { flex: 1; min-width: 0; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; unicode-bidi: isolate; } .own .name { font-weight: 600; }
"""


def preview_page(shown: Shown) -> str:
    """The sheet as a page: photos with numbered boxes, crops as PNG, labels as bars."""
    notes = [element("p", note, class_="pale") for note in shown.notes]
    legend = element(
        "p", "A number links a crop with its box. Entropy and tail are of the whole label: the "
        "tail is the mass of the classes that it doesn't keep. The green bar is the "
        "folder's own class; ✓ and ✗ say whether the label's first class is that one.",
        class_="pale",
    )  # fmt: skip
    passed = [element("p", f"Not shown: {key}: {why}", class_="pale")
              for key, why in shown.passed_over]  # fmt: skip
    return page(shown.title, *notes, legend, *(_image(image) for image in shown.images), *passed,
                style=STYLE)  # fmt: skip


def _image(image: ShownImage) -> Html:
    photo = element("figure", _photo(image), element(
        "p", f"{image.photo.width} × {image.photo.height} pixels", class_="pale"), class_="photo",
    )  # fmt: skip
    crops = element("div", *(_crop(n, view) for n, view in enumerate(image.views)), class_="crops")
    named = image.class_name is None or image.key.startswith(f"{image.class_name}/")
    title = image.key if named else f"{image.key}: {image.class_name}"
    return element("section", element("h2", title), element("div", photo, crops, class_="row"))


def _photo(image: ShownImage) -> Html:
    """The photo with boxes over it; enlarged photos keep their pixels square."""
    width, height = image.photo.size
    scale = PHOTO / max(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = image.photo if scale >= 1 else image.photo.resize(
        size, Image.Resampling.BICUBIC, reducing_gap=3.0
    )  # fmt: skip
    content, media = (
        (_png(small), "image/png")
        if scale >= 2
        else (encoded(small, "JPEG", quality=88), "image/jpeg")
    )
    parts = [element("image", href=data_uri(content, media), width=size[0], height=size[1],
                     class_="small" if scale >= 2 else None)]  # fmt: skip
    boxes = [scaled_box(view.box, scale, size) for view in image.views]
    for number, (x0, y0, x1, y1) in enumerate(boxes):
        parts.append(element("rect", x=x0, y=y0, width=x1 - x0 + 1, height=y1 - y0 + 1,
                             fill="none", stroke=outline(number), stroke_width=4))  # fmt: skip
    for number, (x, y) in enumerate(badge_places(boxes, size, BADGE)):
        parts += [
            element("rect", x=x, y=y, width=BADGE[0], height=BADGE[1], fill=outline(number)),
            element("text", number + 1, x=x + BADGE[0] / 2, y=y + 24, text_anchor="middle"),
        ]
    return element("svg", *parts, viewBox=f"0 0 {size[0]} {size[1]}", role="img")


def _crop(number: int, view: ShownView) -> Html:
    verdict = ("", "") if view.agrees is None else (
        ("✓", "good") if view.agrees else ("✗", "bad")
    )  # fmt: skip
    what = f"{view.entropy:.2f} nats, tail {view.tail:.2f}" + (", flipped" if view.flip else "")
    head = element(
        "div", element("span", number + 1, class_="badge", style=f"background: {outline(number)}"),
        element("span", what), element("span", verdict[0], class_=f"verdict {verdict[1]}".strip()),
        class_="head",
    )  # fmt: skip
    size = len(view.crop)
    picture = void("img", src=data_uri(_png(view.crop), "image/png"), alt=f"crop {number + 1}",
                   width=size, height=size, class_="small" if size < 128 else None,
                   style=f"border-color: {outline(number)}")  # fmt: skip
    return element("figure", head, picture, *(_class(*entry) for entry in view.top), class_="crop")


def _class(name: str, probability: float, own: bool) -> Html:
    return element(
        "div", element("span", class_="fill", style=f"width: {100 * probability:.2f}%"),
        element("span", name, class_="name", title=name),
        element("span", f"{100 * probability:.1f} %", class_="share"),
        class_="class own" if own else "class",
    )  # fmt: skip


def _png(pixels: npt.NDArray[np.uint8] | Image.Image) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    return encoded(image, "PNG")
