"""The page of an evaluation's checks: what was measured is drawn where it belongs, and a browser shows it."""

import re
from typing import Any
from xml.etree import ElementTree

import pytest

from fastaug.reports.check_report import check_lines, page, sections

HOSTILE = "<script>alert(1)</script>"


def calibration(accuracy: float) -> dict[str, Any]:
    """Two bins, of which the lower is empty."""
    rows = [
        {"from": 0.0, "to": 0.5, "images": 0, "accuracy": None, "confidence": None},
        {"from": 0.5, "to": 1.0, "images": 8, "accuracy": accuracy, "confidence": 0.75},
    ]
    return {"temperature": 1.0, "nll": 0.5, "ece": abs(accuracy - 0.75), "reliability": rows}


@pytest.fixture
def figures() -> dict[str, Any]:
    point = {"top1": 0.9, "confidence": 0.8}
    curve = [point | {"visibility": 1.0}, point | {"visibility": 0.5, "top1": 0.4}]
    return {
        "top1": 0.9,
        "corruptions": {
            **{"parameters": "CIFAR-C (32 px)", "severities": [1, 2], "clean_error": 0.1},
            **{"errors": {"fog": {"1": 0.2, "2": 0.6}}, "mean_errors": {"fog": 0.4}, "mce": 0.4, "mce_alexnet": None},
        },
        "occlusion": {"shift": curve},
        "ood": {
            **{"images": 10, "ood_images": 5, "root": HOSTILE},
            **{name: {"auroc": 0.9, "fpr95": 0.3} for name in ("max_softmax", "energy")},
        },
        "calibration": {
            **{"temperature": 2.0, "not_fitted": None, "fitted_on": "select", "fitted_on_images": 9, "images": 8},
            **{"before": calibration(0.5), "after": calibration(0.75)},
        },
    }


def test_checks_are_drawn_with_the_lines_of_the_screen(figures: dict[str, Any]) -> None:
    found = sections(figures)
    assert [section.title for section in found] == [
        *("Calibration", "Occlusion", "Another set", "Common corruptions"),
    ]
    before, after = (ElementTree.fromstring(chart.drawing) for chart in found[0].charts)
    assert [float(bar.get("height") or 0) for bar in (*before.iter("rect"), *after.iter("rect"))] == [85.0, 127.5]
    assert found[0].charts[1].title == "With T = 2.000"
    assert [name for name, _ in found[1].charts[0].legend] == ["accuracy", "confidence"]
    assert not found[2].charts
    assert [line for section in found for line in section.lines] == check_lines(figures)
    assert "right 0.750" in found[0].charts[1].drawing


def test_without_a_best_temperature_there_is_one_diagram(figures: dict[str, Any]) -> None:
    figures["calibration"] |= {"temperature": None, "after": None, "not_fitted": "temperature: no T is best"}
    section = sections(figures)[0]
    assert [chart.title for chart in section.charts] == ["As the network is"]
    assert section.lines[0] == "temperature: no T is best"


def test_nothing_measured_is_said() -> None:
    assert b"Nothing was measured" in page("Checks", "test", {"top1": 0.5})


@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_the_page_on_a_phone(figures: dict[str, Any], browser: Any, dark: bool) -> None:
    content = page(f"Checks of {HOSTILE}", HOSTILE, figures)
    assert len(re.findall(rb"<script", content)) == 0
    script = """{
        charts: [...document.querySelectorAll("svg")].map(each => each.getBoundingClientRect().width),
        wide: document.documentElement.scrollWidth,
        bar: getComputedStyle(document.querySelector("rect.bar")).fill,
        image: document.images.length,
        title: document.querySelector("h1").textContent,
    }"""
    opened = browser(content, script, width=360, dark=dark)
    assert not opened.console
    assert len(opened.said["charts"]) == 4
    assert all(200 < width <= 360 for width in opened.said["charts"])
    assert opened.said["wide"] <= 360
    assert opened.said["bar"] == ("rgb(106, 168, 255)" if dark else "rgb(31, 111, 214)")  # --s0 of frame.css
    assert opened.said["image"] == 0
    assert opened.said["title"] == f"Checks of {HOSTILE}"
