"""The table of classes: what is worst, what is confused, and what the screen shows."""

import pytest
import torch

from fastaug.console import Console
from fastaug.evaluation.class_table import class_details, print_worst, table_lines, without_details

# Four classes: the first is all right, the second has no image, the third is never predicted, the last is half right.
SUMS = torch.tensor([[10, 0, 0, 2], [14, 1, 0, 3], [10, 0, 4, 4]])
PAIRS = {(0, 0): 10, (2, 0): 3, (2, 3): 1, (3, 3): 2, (3, 0): 1, (3, 1): 1}
NAMES = ["ant", "bee ", "cow", "dog"]


def test_a_row_has_what_can_be_divided_and_nothing_else():
    rows = class_details(SUMS, PAIRS, NAMES)["classes"]
    assert [row["precision"] for row in rows] == [10 / 14, 0, None, 2 / 3]
    assert [row["recall"] for row in rows] == [1, None, 0, 0.5]
    assert [row["f1"] for row in rows] == pytest.approx([20 / 24, 0, 0, 4 / 7])


def test_classes_with_images_are_ranked_by_f1_and_pairs_by_images():
    found = class_details(SUMS, PAIRS, NAMES)
    assert found["worst_classes"] == ["cow", "dog", "ant"]
    assert found["confused"][0] == {"class": "cow", "taken_for": "ant", "images": 3, "share": 0.75}
    assert [pair["images"] for pair in found["confused"]] == [3, 1, 1, 1]
    assert found["confusion"] == {
        "ant": {"ant": 10},
        "cow": {"ant": 3, "dog": 1},
        "dog": {"ant": 1, "bee ": 1, "dog": 2},
    }


def test_of_many_classes_the_worst_are_named():
    count = 30
    sums = torch.stack([torch.arange(count), torch.full((count,), count), torch.full((count,), count)])
    pairs = {(label, 0): count - label for label in range(1, count)}
    found = class_details(sums, pairs, [f"{label:02}" for label in range(count)])
    assert found["worst_classes"] == ["00", "01", "02", "03", "04"]
    assert len(found["confused"]) == 20
    assert len(found["classes"]) == count


def test_the_screen_names_the_worst_classes_and_pairs(capsys):
    print_worst(Console(True), class_details(SUMS, PAIRS, NAMES))
    said = capsys.readouterr().out
    assert "cow taken for ant: 3 images, 75.0% of the class" in said
    assert "dog taken for 'bee ': 1 images" in said
    assert said.index("cow") < said.index("dog") < said.index("ant ")
    lines = table_lines(class_details(SUMS, PAIRS, NAMES)["classes"])
    assert lines[0].split() == ["class", "F1", "precision", "recall", "images"]
    assert lines[3].split() == ["cow", "0.0000", "-", "0.0000", "4"]
    assert len(set(map(len, lines))) == 1


def test_where_all_is_right_nothing_is_shown(capsys):
    sums = torch.tensor([[3, 2], [3, 2], [3, 2]])
    print_worst(Console(True), class_details(sums, {(0, 0): 3, (1, 1): 2}, ["a", "b"]))
    assert capsys.readouterr().out == ""


def test_log_lines_go_without_what_is_more_than_numbers():
    figures = {"top1": 0.5, **class_details(SUMS, PAIRS, NAMES)}
    assert without_details(figures) == {"top1": 0.5}
