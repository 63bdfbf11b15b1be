"""Runs grouped by recipe without seed; means, spreads and paired differences."""

import statistics
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import ttest_rel

from fastaug.evaluation.sample_file import FILE
from fastaug.reports.run_files import read_runs
from fastaug.reports.run_groups import cautions, compared, grouped, known_figures, table

PLAIN, SOFT = (0.5, 0.6, 0.7), (0.6, 0.8, 0.75)


@pytest.fixture
def groups(made_run):
    folders = [made_run(f"plain-{seed}", f"run.seed={seed}", top1=value) for seed, value in enumerate(PLAIN)]
    keys = ("augment.shift=0.3", "data.split_seed=0")
    folders += [made_run(f"soft-{seed}", f"run.seed={seed}", *keys, top1=value) for seed, value in enumerate(SOFT)]
    return grouped(read_runs(folders))


def test_runs_that_differ_in_the_seed_are_one_group(groups):
    assert [(group.name, len(group.runs)) for group in groups] == [("plain", 3), ("soft", 3)]


def test_files_named_by_the_seed_do_not_part_a_group(made_run):
    keys = ("data.labels=/labels/drawn-{}/labels.tsv", "data.split_seed={}")
    folders = [made_run(f"a{s}", f"run.seed={s}", *(key.format(s) for key in keys)) for s in (1, 12)]
    folders.append(made_run("other", "run.seed=1", "data.labels=/labels/drawn-2/labels.tsv"))
    assert [len(group.runs) for group in grouped(read_runs(folders))] == [2, 1]


def test_means_spreads_and_the_best(groups):
    (_, plain), (_, soft) = table(groups)
    column = known_figures(groups).index("top1")
    assert plain[column].mean == pytest.approx(statistics.mean(PLAIN))
    assert plain[column].sd == pytest.approx(statistics.stdev(PLAIN))
    assert soft[column].best
    assert not plain[column].best
    nll = known_figures(groups).index("nll")  # less is better
    assert soft[nll].best


def test_differences_are_paired_by_seed(groups):
    ((group, cells),) = compared(groups)
    cell = cells[known_figures(groups).index("top1")]
    assert group.name == "soft"
    assert cell.pairs == 3
    assert cell.mean == pytest.approx(statistics.mean(SOFT) - statistics.mean(PLAIN))
    assert cell.p == pytest.approx(ttest_rel(SOFT, PLAIN).pvalue)


def test_what_cannot_be_compared_is_said(made_run, groups):
    assert cautions(groups) == []
    lone = made_run("lone", "train.epochs=3", "run.seed=7", classes=4)
    both = grouped(read_runs([*(run.path for group in groups for run in group.runs), lone]))
    assert "different classes" in " ".join(cautions(both))
    assert [group.name for group, _ in compared(both)] == ["soft"]  # the lone one has no seed of the first's
    (lone / "result.json").unlink()
    both = grouped(read_runs([groups[0].runs[0].path, lone]))
    assert cautions(both) == ["Without a result, and so in no mean: lone."]


def test_other_test_images_are_noticed(made_run):
    one, other = made_run("a", "run.seed=0"), made_run("b", "run.seed=0", "train.epochs=3")
    with np.load(other / FILE) as stored:
        np.savez(other / FILE, **(dict(stored) | {"id": stored["id"] + 1}))
    assert "one seed were not tested on the same images" in " ".join(cautions(grouped(read_runs([one, other]))))
    third = made_run("c", "run.seed=1")
    np.savez(third / FILE, **dict(np.load(other / FILE)))
    assert "Each seed has test images of its own" in " ".join(cautions(grouped(read_runs([one, third]))))


def test_what_is_no_number_counts_nowhere(groups):
    first, *others = [run for group in groups for run in group.runs]
    for bad in (float("nan"), "0.5", None, True, [1], float("inf")):
        odd = replace(first, result={"test": first.test | {"top1": bad}})
        again = grouped([odd, *others])
        cell = table(again)[0][1][known_figures(again).index("top1")]
        assert (cell.runs, cell.mean) == (2, pytest.approx(statistics.mean(PLAIN[1:])))
        assert compared(again)[0][1][known_figures(again).index("top1")].pairs == 2


def test_one_seed_twice_is_said(made_run):
    runs = read_runs([made_run("a", top1=0.5), made_run("b", top1=0.7)])
    assert "seed occurs more than once" in cautions(grouped(runs))[0]
