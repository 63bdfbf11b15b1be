"""Charts as SVG: values stand where they should, gaps and extremes break nothing."""

import math
import re
from xml.etree import ElementTree

import pytest

from fastaug.reports import svg

NAN = math.nan
NAMES = ("epoch", "loss")


def parsed(drawing):
    return ElementTree.fromstring(drawing)


def test_lines_pass_their_values():
    root = parsed(svg.lines([svg.Line("a", 1, [(0, 0), (10, 1)])], NAMES))
    (path,) = root.iter("path")
    assert path.get("class") == "curve c1"
    start, end = re.findall(r"[-\d.]+,[-\d.]+", path.get("d"))
    assert start == f"{svg.LEFT:.1f},{svg.HEIGHT - svg.BOTTOM:.1f}"
    assert end == f"{svg.WIDTH - svg.RIGHT:.1f},{svg.TOP:.1f}"


def test_a_gap_parts_a_line():
    root = parsed(svg.lines([svg.Line("a", 0, [(0, 1), (1, 2), (2, NAN), (3, 4), (4, 5)])], NAMES))
    assert next(root.iter("path")).get("d").count("M") == 2


@pytest.mark.parametrize("points", [[], [(0, NAN)], [(NAN, 1)], [(0, math.inf), (1, -math.inf)], [(0, 1e308)]])
def test_nothing_known_is_no_chart(points):
    assert svg.lines([svg.Line("a", 0, points)], NAMES) is None


@pytest.mark.parametrize("values", [(5, 5), (0, 0), (-3, -3), (1e-12, 2e-12), (1e200, -1e200), (1, 1 + 1e-16)])
def test_any_range_is_drawn(values):
    parsed(svg.lines([svg.Line("a", 0, list(enumerate(values)))], NAMES))
    parsed(svg.lines([svg.Line("a", 0, [(2, values[0])])], NAMES))


def test_a_spike_outlives_thinning():
    points = [(i, 0.0) for i in range(100_000)]
    points[54_321] = (54_321, 9.0)
    found = svg.thinned(points)
    assert len(found) <= svg.MOST_POINTS
    assert (54_321, 9.0) in found
    assert found == sorted(found)


def test_shares_fill_the_field():
    each = [svg.Line("a", 0, [(0, 0.25), (1, 0.75)]), svg.Line("b", 1, [(0, 0.75), (1, 0.25)])]
    below, above = [path.get("d") for path in parsed(svg.shares(each, NAMES)).iter("path")]
    assert f"{svg.LEFT:.1f},{svg.TOP:.1f}" in above
    assert f"{svg.LEFT:.1f},{svg.HEIGHT - svg.BOTTOM:.1f}" in below
    assert svg.shares([svg.Line("a", 0, [(0, NAN), (1, 1)])], NAMES) is None
    assert svg.shares([svg.Line("a", 0, [(0, 1)])], NAMES) is None


def test_names_are_escaped():
    hostile = '"><script>alert(1)</script>'
    for drawing in (
        svg.lines([svg.Line(hostile, 0, [(0, 1), (1, 2)])], (hostile, hostile)),
        svg.matrix([[1, 2], [3, 4]], [hostile, "b"]),
    ):
        assert "<script" not in drawing
        parsed(drawing)


def test_a_matrix_tells_every_pair():
    root = parsed(svg.matrix([[8, 2], [0, 10]], ["cat", "dog"]))
    cells = list(root.iter("rect"))
    assert [cell.get("class") for cell in cells] == ["cell right", "cell wrong", "cell", "cell right"]
    assert [title.text for title in root.iter("title")] == [
        "cat taken for cat: 8 images, 80.0%",
        "cat taken for dog: 2 images, 20.0%",
        "dog taken for dog: 10 images, 100.0%",
    ]
