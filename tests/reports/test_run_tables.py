"""Means, paired differences and the layout of methods by cells, against scipy and by hand."""

import math

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import ttest_rel

from fastaug.reports.run_tables import (
    cell,
    compared,
    difference,
    differences,
    figures_of_result,
    layout,
    p_value,
    tables,
)

RUNS = {
    "NONE": {0: {"error": 0.20}, 1: {"error": 0.30}, 2: {"error": 0.40}},
    "BOTH": {2: {"error": 0.35}, 0: {"error": 0.10}},
    "lost": {},
}


def test_the_standard_deviation_is_that_of_a_sample():
    assert cell([0.2, 0.3, 0.4]) == "0.3000 (0.1000)"
    assert cell([0.2]) == "0.2000 (nan)"
    assert cell([]) == ""


def test_differences_are_of_the_seeds_that_both_have():
    assert differences(RUNS, "BOTH", "NONE", "error") == pytest.approx([-0.1, -0.05])
    assert differences(RUNS, "lost", "NONE", "error") == []
    found = compared(RUNS, "NONE")
    assert found.keys() == {"BOTH"}
    assert found["BOTH"]["error"] == pytest.approx({"pairs": 2, "mean": -0.075, "sd": 0.05 / 2**0.5, "p": None})


def test_p_is_that_of_the_paired_t_test():
    draw = np.random.default_rng(0)
    one, two = draw.normal(0, 1, 5), draw.normal(1, 1, 5)
    assert p_value((one - two).tolist()) == pytest.approx(ttest_rel(one, two).pvalue)
    assert p_value([0.1, 0.2]) is None
    assert p_value([0.1, 0.1, 0.1]) is None
    assert difference([-0.01, -0.02, -0.03]) == "-0.0200 (0.0100) p=0.074"


def test_methods_by_cells_say_what_is_missing():
    table = layout({"IR1-NR0.4": RUNS, "IR100-NR0.1": {"NONE": {0: {"error": 0.5}}}}, "error").splitlines()
    assert table[0] == "| error, % | IR1-NR0.4 | IR100-NR0.1 |"
    assert table[2] == "| NONE | 30.0±10.00 | **50.0±nan** (1 of 3) |"
    assert table[3] == "| BOTH | **22.5±17.68** (2 of 3) |  |"
    assert table[4] == "| lost |  |  |"


def test_what_is_better_larger_is_best_where_it_is_largest():
    runs = {"SOFT": {0: {"labels_repaired": 0.9}}, "BOTH": {0: {"labels_repaired": 0.8}}}
    assert layout({"": runs}, "labels_repaired").splitlines()[2] == "| SOFT | **90.0±nan** |"
    assert compared(runs, "SOFT")["BOTH"]["labels_repaired"]["mean"] == pytest.approx(-0.1)
    scored = {"a": {0: {"f1_macro": 0.9}}, "b": {0: {"f1_macro": 0.5}}}
    assert layout({"": scored}, "f1_macro").splitlines()[2:] == ["| a | **90.0±nan** |", "| b | 50.0±nan |"]


def test_images_of_several_classes_have_figures_of_their_own():
    result = {"mean_ap": 0.7, "f1_micro": 0.6, "f1_macro": 0.5, "bce": 0.2, "commit": "abc"}
    found = figures_of_result({**result, "select": {"mean_ap": 0.8, "bce": 0.1}})
    assert found == result


def test_names_of_arms_are_told_as_they_are():
    console = Console(width=80, record=True)
    for table in tables({"[red]x[/b]": RUNS["NONE"], "y[policy]": RUNS["BOTH"]}, "[red]x[/b]"):
        console.print(table)
    assert "arm less [red]x[/b]" in (text := console.export_text())
    assert "y[policy]" in text


def test_results_of_earlier_versions_have_no_balanced_error():
    result = {"top1": 0.75, "ece": 0.1, "nll": 1.0, "select": None, "commit": "abc"}
    assert "balanced_error" not in figures_of_result(result)
    found = figures_of_result({**result, "balanced_top1": 0.5, "samples": {"weight_auroc": 0.9}})
    assert (found["error"], found["balanced_error"], found["weight_auroc"]) == (0.25, 0.5, 0.9)
    assert not math.isnan(found["nll"])
