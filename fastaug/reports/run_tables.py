"""Tables of results over runs: means with sample standard deviations, paired differences, methods by settings of data.

Runs are paired by seed, for runs of one seed share the draws of splits, distortion and network. Whether a difference is
more than chance is told by the two-sided paired t-test, from three pairs on: with the three to five seeds of a study a
sign test could never be below .25 and .06. Nothing corrects it for the number of arms or figures.
"""

import statistics
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

FIGURES = (
    *("error", "balanced_error", "mean_ap", "f1_micro", "f1_macro", "ece", "nll", "bce", "select_error"),
    *("weight_auroc", "loss_auroc", "labels_repaired", "labels_spoiled"),
)
MORE_IS_BETTER = ("mean_ap", "f1_micro", "f1_macro", "weight_auroc", "loss_auroc", "labels_repaired")
SHARES = tuple(figure for figure in FIGURES if figure not in ("nll", "bce"))  # those that can be told in percent
FEWEST_PAIRS = 3  # of a p-value

Runs = dict[str, dict[int, dict[str, Any]]]  # arm -> seed -> figures


def figures_of_result(result: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a result.json by name; those that it does not have are missing here too."""
    select = result["select"] or {}
    shares = {"error": result.get("top1"), "balanced_error": result.get("balanced_top1")}
    shares["select_error"] = select.get("top1")
    figures = {figure: 1 - share for figure, share in shares.items() if share is not None}
    figures |= {figure: result[figure] for figure in FIGURES if figure in result}
    figures |= {"select_nll": select["nll"]} if "nll" in select else {}
    return figures | result.get("samples", {}) | {"commit": result["commit"]}


def cell(values: Sequence[float]) -> str:
    """Mean and standard deviation, empty without values."""
    return f"{statistics.mean(values):.4f} ({spread(values):.4f})" if values else ""


def spread(values: Sequence[float]) -> float:
    """The sample standard deviation, NaN of a single value."""
    return statistics.stdev(values) if len(values) > 1 else float("nan")


def differences(runs: Runs, arm: str, against: str, figure: str) -> list[float]:
    """How much larger a figure is in `arm` than in `against`, in each seed that both have."""
    pairs = [(runs[arm][seed], runs[against][seed]) for seed in sorted(runs[arm].keys() & runs[against].keys())]
    return [one[figure] - other[figure] for one, other in pairs if figure in one and figure in other]


def p_value(apart: Sequence[float]) -> float | None:
    """Of the two-sided paired t-test; None of fewer than three pairs, and of differences that are all the same."""
    if len(apart) < FEWEST_PAIRS or len(set(apart)) == 1:
        return None
    from scipy.stats import ttest_1samp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # differences equal but for rounding
        return float(ttest_1samp(apart, 0.0).pvalue)


def difference(apart: Sequence[float]) -> str:
    """Mean, standard deviation and p of paired differences."""
    p = p_value(apart)
    return cell(apart) + ("" if p is None else f" p={p:.2g}")


def tables(runs: Runs, against: str) -> list[Table]:
    """Figures of each arm, and their differences to the arm `against`."""
    known = [result for results in runs.values() for result in results.values()]
    shown = [figure for figure in FIGURES if any(figure in result for result in known)]
    means = Table("arm", "runs", *(f"{figure}, mean (sd)" for figure in shown))
    apart = Table(f"arm less {escape(against)}, by seed", "pairs", *(f"{figure}, mean (sd) p" for figure in shown))
    for arm, results in runs.items():
        columns = ([result[figure] for result in results.values() if figure in result] for figure in shown)
        means.add_row(escape(arm), str(len(results)), *map(cell, columns))
        if arm != against:
            pairs = len(results.keys() & runs[against].keys())
            apart.add_row(
                escape(arm), str(pairs), *(difference(differences(runs, arm, against, figure)) for figure in shown)
            )
    return [means, apart] if len(runs) > 1 else [means]


def compared(runs: Runs, against: str) -> dict[str, dict[str, Any]]:
    """Of each arm and figure: pairs, mean, standard deviation and p of the differences, for a JSON file."""
    found: dict[str, dict[str, Any]] = {}
    for arm in runs:
        each = {figure: differences(runs, arm, against, figure) for figure in FIGURES}
        found[arm] = {
            figure: {"pairs": len(apart), "mean": statistics.mean(apart), "sd": spread(apart), "p": p_value(apart)}
            for figure, apart in each.items()
            if apart and arm != against
        }
    return {arm: figures for arm, figures in found.items() if figures}


def layout(cells: Mapping[str, Runs], figure: str) -> str:
    """A Markdown table with a row for each method and a column for each cell: mean±sd in percent, the best in bold.

    Runs that are missing are left out of the mean, which then says how many it is of.
    """
    arms = list(dict.fromkeys(arm for runs in cells.values() for arm in runs))
    most = max((len(results) for runs in cells.values() for results in runs.values()), default=0)
    columns = {name: {arm: _values(runs.get(arm, {}), figure) for arm in arms} for name, runs in cells.items()}
    means = {
        name: [statistics.mean(values) for values in column.values() if values] for name, column in columns.items()
    }
    best = max if figure in MORE_IS_BETTER else min
    lines = [f"| {figure}, % | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for arm in arms:
        texts = [_percent(column[arm], most, best(means[name], default=None)) for name, column in columns.items()]
        lines.append(f"| {arm} | {' | '.join(texts)} |")
    return "\n".join(lines)


def _values(results: Mapping[int, Mapping[str, Any]], figure: str) -> list[float]:
    return [result[figure] for result in results.values() if figure in result]


def _percent(values: Sequence[float], most: int, best: float | None) -> str:
    if not values:
        return ""
    mean = statistics.mean(values)
    text = f"{100 * mean:.1f}±{100 * spread(values):.2f}"
    text = f"**{text}**" if mean == best else text
    return text if len(values) == most else f"{text} ({len(values)} of {most})"
