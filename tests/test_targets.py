import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

from fastaug import targets as T
from fastaug.targets import SoftTarget, soft_cross_entropy, softness

examples = settings(max_examples=60)  # a busy machine is not a failure


@st.composite
def problems(draw, may_have_rows=True):
    """(logits [B,C], target) in float64: same-class pairs, masses at the corners, weights of 0, soft rows."""
    batch, num_classes = draw(st.integers(1, 6)), draw(st.integers(2, 9))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    lam = torch.rand(batch, generator=g, dtype=torch.float64)
    seen = torch.rand(batch, generator=g, dtype=torch.float64) * 1.5
    seen = torch.where(torch.rand(batch, generator=g) < 0.2, 0, seen.clamp(max=1))
    weight = torch.rand(batch, generator=g, dtype=torch.float64) * torch.randint(0, 3, (batch,), generator=g)
    soft = torch.rand(batch, 2, num_classes, generator=g, dtype=torch.float64).log().softmax(-1)
    target = SoftTarget(
        torch.randint(0, num_classes, (batch, 2), generator=g),
        torch.stack([lam * seen, (1 - lam) * seen], 1),
        weight,
        soft if may_have_rows and draw(st.booleans()) else None,
    )
    return 4 * torch.randn(batch, num_classes, generator=g, dtype=torch.float64), target


def written_out(target, num_classes):
    """The definition, one class at a time."""
    table = torch.empty(len(target.classes), num_classes, dtype=torch.float64)
    for i in range(len(table)):
        for c in range(num_classes):
            p = (1 - target.mass[i].sum()) / num_classes
            for j in range(2):
                row = target.classes[i, j] == c if target.rows is None else target.rows[i, j, c]
                p = p + target.mass[i, j] * row
            table[i, c] = p
    return table


@examples
@given(problems())
def test_dense_confidence_and_entropies_follow_the_definition(problem):
    logits, target = problem
    table = written_out(target, logits.shape[1])
    T.check_target(target, logits.shape[1])
    torch.testing.assert_close(T.dense(target, logits.shape[1]), table)
    torch.testing.assert_close(T.confidence(target, logits.shape[1]), table.amax(1))
    values, counts = T.probabilities(target, logits.shape[1])
    torch.testing.assert_close((values * counts).sum(1), torch.ones(len(table), dtype=torch.float64))
    torch.testing.assert_close((values**2 * counts).sum(1), (table**2).sum(1))


@examples
@given(problems(), st.sampled_from(["mean", "sum", "none"]))
def test_cross_entropy_equals_its_dense_form(problem, reduction):
    logits, target = problem
    per_sample = -(T.dense(target, logits.shape[1]) * logits.log_softmax(1)).sum(1) * target.weight
    # "mean" divides by B, whatever the weights are
    expected = {"none": per_sample, "sum": per_sample.sum(), "mean": per_sample.sum() / len(logits)}
    torch.testing.assert_close(soft_cross_entropy(logits, target, reduction), expected[reduction])


@examples
@given(problems(may_have_rows=False))
def test_merging_changes_the_masses_of_equal_pairs_only(problem):
    logits, target = problem
    merged = T.merge_equal(target)
    same = target.classes[:, 0] == target.classes[:, 1]
    assert torch.equal(merged.mass[~same], target.mass[~same])
    assert (merged.mass[same, 1] == 0).all()
    torch.testing.assert_close(T.dense(merged, logits.shape[1]), T.dense(target, logits.shape[1]))


def test_same_class_pair_has_the_confidence_of_one_mass():
    target = SoftTarget(torch.tensor([[3, 3], [3, 1]]), torch.tensor([[0.5, 0.5]] * 2), torch.ones(2))
    torch.testing.assert_close(T.confidence(target, 10), torch.tensor([1.0, 0.5]))


def test_rows_of_one_class_are_not_merged():
    rows = torch.tensor([[[0.7, 0.3], [0.2, 0.8]]])
    target = SoftTarget(torch.tensor([[0, 0]]), torch.tensor([[0.5, 0.5]]), torch.ones(1), rows)
    assert torch.equal(T.merge_equal(target).mass, target.mass)
    torch.testing.assert_close(T.confidence(target, 2), torch.tensor([0.55]))


@examples
@given(problems(may_have_rows=False))
def test_cross_entropy_builds_nothing_of_the_targets_size_times_classes(problem):
    logits, target = problem
    seen = []

    class Shapes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.numel() >= logits.numel() > 3 * len(logits):
                seen.append(str(func))
            return out

    with Shapes():
        soft_cross_entropy(logits, target)
    assert set(seen) <= {"aten._log_softmax.default"}


# ---- against the libraries ----


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_label_smoothing_is_that_of_torch_and_timm(smoothing):
    g = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(16, 7, generator=g), torch.randint(0, 7, (16,), generator=g)
    ours = soft_cross_entropy(logits, T.smoothed(T.hard_target(labels), smoothing))
    torch.testing.assert_close(ours, F.cross_entropy(logits, labels, label_smoothing=smoothing))
    torch.testing.assert_close(ours, LabelSmoothingCrossEntropy(smoothing)(logits, labels))


@examples
@given(problems())
def test_soft_cross_entropy_is_that_of_timm_and_torch(problem):
    logits, target = problem
    target = target._replace(weight=torch.ones_like(target.weight))
    table = T.dense(target, logits.shape[1])
    ours = soft_cross_entropy(logits, target)
    torch.testing.assert_close(ours, SoftTargetCrossEntropy()(logits, table))
    torch.testing.assert_close(ours, F.cross_entropy(logits, table))


def test_smoothings_compose():
    target = T.hard_target(torch.tensor([1, 4]))
    twice = T.smoothed(T.smoothed(target, 0.1), 0.2)
    torch.testing.assert_close(twice.mass, T.smoothed(target, 1 - 0.9 * 0.8).mass)


# ---- builders ----


def test_other_class_takes_the_remainder():
    target = T.other_class_target(torch.tensor([2, 0]), torch.tensor([0.7, 1.0]), 3)
    expected = torch.tensor([[0, 0, 0.7, 0.3], [1, 0, 0, 0]])
    torch.testing.assert_close(T.dense(target, 4), expected)


def test_a_mixed_weight_is_the_mean_under_the_masses_and_reaches_both_ids():
    weights = torch.tensor([[2.0, 4.0], [2.0, 4.0]], requires_grad=True)
    mass = torch.tensor([[0.3, 0.1], [0, 0]], requires_grad=True)
    target = T.mixed_target(torch.tensor([[0, 1], [0, 1]]), mass, weights)
    torch.testing.assert_close(target.weight, torch.tensor([2.5, 2.0]))
    by_weight, by_mass = torch.autograd.grad(target.weight.sum(), (weights, mass))
    torch.testing.assert_close(by_weight, torch.tensor([[0.75, 0.25], [1, 0]]))
    assert by_mass.isfinite().all()


# ---- compilation, errors ----


def test_one_graph_under_compile():
    def step(logits, labels, v, k):
        mass = T.soft_augmentation_mass(v, k, 6)
        hard = T.hard_target(labels, weight=T.mass_confidence(mass, 6))
        target = T.smoothed(hard._replace(mass=hard.mass * mass[:, None]), 0.1)
        return soft_cross_entropy(logits, target), T.confidence(target, 6)

    g = torch.Generator().manual_seed(3)
    inputs = torch.randn(5, 6, generator=g), torch.arange(5), torch.rand(5, generator=g), torch.tensor(2.0)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), step(*inputs))


def test_a_target_is_a_pytree():
    target = T.hard_target(torch.tensor([0, 1]))
    moved = torch.utils._pytree.tree_map_only(torch.Tensor, lambda x: x.to("meta"), target)
    assert isinstance(moved, SoftTarget)
    assert moved.mass.is_meta


def test_labels_of_any_integer_type_become_int64():
    assert T.hard_target(torch.tensor([1, 2], dtype=torch.int32)).classes.dtype == torch.int64


HARD = T.hard_target(torch.tensor([0, 1]))
V = torch.tensor([0.5])


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: T.hard_target(torch.tensor([[1]])), r"shape \[B\].*\(1, 1\)"),
        (lambda: T.hard_target(torch.tensor([1.0])), "integers.*float32"),
        (lambda: T.smoothed(HARD, 1.0), r"smoothing.*1\.0"),
        (lambda: T.smoothed(HARD, -0.1), r"smoothing.*-0\.1"),
        (lambda: softness(V, 0), "exponent k.*0"),
        (lambda: softness(V, math.nan), "exponent k.*nan"),
        (lambda: T.soft_augmentation_mass(V, 2, 1), "2 classes, found 1"),
        (lambda: T.soft_augmentation_mass(V, 2, 10, p_max=0.05), r"p_max.*0\.05"),
        (lambda: T.soft_augmentation_mass(V, 2, 10, threshold=0), "threshold T.*0"),
        (lambda: soft_cross_entropy(torch.zeros(3, 4), HARD), r"same B.*\(3, 4\)"),
        (lambda: soft_cross_entropy(torch.zeros(2), HARD), r"\[B,C\].*\(2,\)"),
        (lambda: soft_cross_entropy(torch.zeros(2, 1), HARD), "2 classes, found 1"),
        (lambda: soft_cross_entropy(torch.zeros(2, 4), HARD, "avg"), "reduction.*'avg'"),
        (lambda: T.check_labels(torch.tensor([0, 3, -1]), 3), r"label 3 \(entry 1\).*\[0, 3\)"),
        (lambda: T.check_labels(torch.tensor([0, -1]), 3), r"label -1 \(entry 1\)"),
        (lambda: T.check_labels(torch.tensor([0.0]), 3), "integers"),
        (lambda: T.check_target(HARD._replace(weight=torch.ones(3)), 2), r"weight.*\(2,\).*\(3,\)"),
        (lambda: T.check_target(HARD._replace(mass=HARD.mass * 1.1), 2), r"masses.*1\.1"),
        (lambda: T.check_target(HARD._replace(mass=-HARD.mass), 2), "masses.*-1"),
        (lambda: T.check_target(HARD._replace(weight=torch.tensor([1.0, torch.nan])), 2), "weights.*nan"),
        (lambda: T.check_target(HARD._replace(rows=torch.ones(2, 2, 2)), 2), "rows must be prob"),
    ],
)
def test_what_cannot_be_right_is_named(call, names):
    with pytest.raises(ValueError, match=names):
        call()
