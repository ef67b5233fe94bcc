"""Pages hold what they are given as text, whatever it looks like, and nothing that runs."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.charts import bars, heat_map, histogram, lines, ticks
from storage.page import Html, data_uri, element, facts, figure, page, section, shorten, table, text

VOID = {"meta", "img", "br", "link"}
EVIL = '<script>alert(1)</script>" onload="x'


class Reader(HTMLParser):
    """Collects tags and text, and checks that every element is closed where it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len({name for name, _ in attrs}) == len(attrs), "an attribute twice"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def read(document: str) -> Reader:
    reader = Reader()
    reader.feed(document)
    reader.close()
    assert reader.open == []
    return reader


def whole_page(name: str) -> str:
    return page(
        name,
        section(name, facts([(name, name)]), table((name, "n"), [(name, 1)], numbers=(1,))),
        figure(name, bars([(name, 0.5)], percent=True)),
        figure(name, histogram([0, 1, 2], [3, 4], name, name)),
        figure(name, lines([0, 1], [(name, [0.1, 0.2]), ("b", [1, 2])], name, name)),
        figure(name, heat_map([name], [name], [[0.25]])),
        element("p", name, title=name),
    )


def test_names_that_look_like_markup_stay_text() -> None:
    reader = read(whole_page(EVIL))
    assert "script" not in {tag for tag, _ in reader.tags}
    assert not any(key.startswith("on") for _, attributes in reader.tags for key in attributes)
    assert reader.words.count("<script>alert(1)</script>") >= 8


@given(st.text(alphabet=st.characters(), max_size=30))
def test_any_name_gives_a_well_formed_page_of_the_same_elements(name: str) -> None:
    found, plain = read(whole_page(name)), read(whole_page("name"))
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in plain.tags]
    whole_page(name).encode()  # lone surrogates would fail


def test_a_page_asks_for_nothing_and_runs_nothing() -> None:
    document = whole_page("name")
    assert document.startswith("<!DOCTYPE html>\n<html lang=")
    attributes = [a for _, a in read(document).tags]
    policy = [a["content"] for a in attributes if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert not any(key in ("src", "href", "xlink:href") for a in attributes for key in a)
    assert "http:" not in document and "https:" not in document and "url(" not in document


def test_characters_that_deceive_or_cannot_be_written_are_spelt_out() -> None:
    assert text("a\u202eb") == "a\\u202eb"
    assert text("a\udc80b") == "a\\udc80b"
    assert text("a\x00\nb") == "a\\x00\\nb"
    assert text("Äpfel 蘋果") == "Äpfel 蘋果"
    assert text(Html("<b>")) == "<b>" and text("<b>") == "&lt;b&gt;"


def test_long_names_end_in_an_ellipsis_and_wide_characters_count_two() -> None:
    assert shorten("short", 5) == "short"
    assert shorten("longer name", 7) == "longer…"
    assert shorten("蘋果蘋果", 5) == "蘋果…"


@given(
    st.floats(-1e9, 1e9, allow_subnormal=False),
    st.floats(1e-6, 1e9),
)
def test_ticks_are_few_even_and_inside(low: float, span: float) -> None:
    high = low + span
    found = ticks(low, high)
    if span > 1e-6 * max(abs(low), 1):  # else steps are below what a float of that size holds
        assert 1 <= len(found) <= 7
        assert all(low - 1e-6 * span <= value <= high + 1e-6 * span for value in found)


def test_ticks_are_round_numbers() -> None:
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert ticks(0, 6.9) == [0, 2, 4, 6]
    assert ticks(3, 3) == [3]


def test_bars_of_a_histogram_are_as_high_as_their_counts() -> None:
    rows = re.findall(r'height="([\d.]+)" class="bar"', histogram([0, 1, 2, 3], [1, 2, 4], "x"))
    heights = [float(row) for row in rows]
    assert heights[2] == pytest.approx(2 * heights[1], abs=0.02)
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.02)


def test_a_curve_has_a_gap_where_there_is_no_value() -> None:
    drawn = lines([0, 1, 2, 3], [("a", [0.0, 1.0, float("nan"), 1.0])], "x", "y")
    assert drawn.count("<circle") == 3
    path = re.search(r'<path d="([^"]+)"', drawn)
    assert path is not None and path[1].count("M") == 2


def test_charts_of_nothing_can_be_drawn() -> None:
    for drawn in (bars([]), histogram([0, 1], [0], "x"), heat_map([], [], []),
                  lines([0, 1], [("a", [float("nan")] * 2)], "x", "y")):  # fmt: skip
        read(page("empty", drawn))


def test_files_inside_a_page_are_base64() -> None:
    assert data_uri(b"\x00\xff", "image/png") == "data:image/png;base64,AP8="
