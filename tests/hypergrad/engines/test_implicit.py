"""Implicit differentiation on a convex problem whose answer is known: a softmax layer solved to 1e-8."""

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastaug.hypergrad.engines.implicit import Solver, implicit_direction
from fastaug.hypergrad.engines.reverse import reverse
from fastaug.hypergrad.problem import Problem, Samples, Weights, pull_back
from fastaug.targets import SoftTarget, hard_target, soft_cross_entropy

COUNT, PIXELS, CLASSES = 60, 4, 3
DECAY = 0.02  # the training loss is strictly convex with it


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Tiny tensors: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def losses(logits: Tensor, target: SoftTarget) -> Tensor:
    return soft_cross_entropy(logits, target, reduction="none")


def data(seed: int, count: int = COUNT) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, PIXELS, generator=generator, dtype=torch.float64)
    return images, torch.randint(CLASSES, (count,), generator=generator)


def training_loss(network: nn.Module, weights: Weights, target: SoftTarget) -> Tensor:
    images, _ = data(0)
    logits = functional_call(network, weights, (images,))
    decay = sum((w**2).sum() for w in weights.values())
    return losses(logits, target).sum() / COUNT + 0.5 * DECAY * decay


def flat_hessian(network: nn.Module, weights: Weights, loss_weights: Tensor) -> Tensor:
    """In closed form: sum_i a_i J_i^T (diag(p_i) - p_i p_i^T) J_i / N, J_i the derivative of the logits."""
    images, _ = data(0)
    p = functional_call(network, weights, (images,)).softmax(1)
    eye = torch.eye(CLASSES, dtype=p.dtype)
    of_weight = torch.einsum("cd,np->ncdp", eye, images).reshape(COUNT, CLASSES, -1)
    jacobian = torch.cat([of_weight, eye.expand(COUNT, -1, -1)], 2)
    inside = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    found = torch.einsum("n,nci,ncd,ndj->ij", loss_weights, jacobian, inside, jacobian) / COUNT
    return found + DECAY * torch.eye(len(found), dtype=p.dtype)


def solved(loss_weights: Tensor, target: SoftTarget | None = None) -> tuple[nn.Module, Weights]:
    """The minimum by Newton's method, to |gradient| < 1e-8; `target`: other labels than those of the images."""
    target = hard_target(data(0)[1], loss_weights) if target is None else target
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(PIXELS, CLASSES)).double()
    weights = {name: p.detach() for name, p in network.named_parameters()}
    for _ in range(30):
        leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
        gradient = torch.autograd.grad(training_loss(network, leaves, target), list(leaves.values()))
        flat = torch.cat([g.flatten() for g in gradient])
        if flat.norm() < 1e-12:
            break
        move = torch.linalg.solve(flat_hessian(network, weights, loss_weights), flat)
        pieces = move.split([w.numel() for w in weights.values()])
        weights = {name: w - p.view_as(w) for (name, w), p in zip(weights.items(), pieces, strict=True)}
    assert flat.norm() < 1e-8
    return network, weights


def validation_loss(network: nn.Module, weights: Weights) -> Tensor:
    images, labels = data(1, 30)
    return losses(functional_call(network, weights, (images,)), hard_target(labels)).mean()


def validation_gradient(network: nn.Module, weights: Weights) -> Weights:
    leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
    found = torch.autograd.grad(validation_loss(network, leaves), list(leaves.values()))
    return dict(zip(leaves, found, strict=True))


def problem_of(network: nn.Module, weights: Weights, loss_weights: Tensor) -> Problem:
    images, labels = data(0)
    return Problem(network, weights, Samples(images, hard_target(labels, loss_weights)), losses, COUNT)


@pytest.fixture(scope="module")
def solution() -> tuple[Problem, Weights, Tensor]:
    """A solved problem on the graph of its loss weights, v and the exact hypergradient -v^T H^-1 d2L/dw dphi."""
    loss_weights = torch.rand(COUNT, generator=torch.Generator().manual_seed(5), dtype=torch.float64) + 0.5
    network, weights = solved(loss_weights)
    problem = problem_of(network, weights, loss_weights.requires_grad_())
    v = validation_gradient(network, weights)
    flat = torch.cat([g.flatten() for g in v.values()])
    u = -torch.linalg.solve(flat_hessian(network, weights, loss_weights.detach()), flat)
    pieces = u.split([w.numel() for w in v.values()])
    exact = hypergradient(problem, {n: p.view_as(v[n]) for n, p in zip(v, pieces, strict=True)})
    return problem, v, exact


def hypergradient(problem: Problem, u: Weights) -> Tensor:
    learned = {"weight": problem.samples.target.weight}
    return pull_back(problem.samples, reverse(problem, u, images=False), learned)["weight"]


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def test_exact_is_that_of_the_solved_again_problem(solution: tuple[Problem, Weights, Tensor]) -> None:
    """The reference of the tests below, by differences of whole training runs."""
    problem, _, exact = solution
    loss_weights, truth = problem.samples.target.weight.detach(), torch.zeros(COUNT, dtype=torch.float64)
    chosen = range(0, COUNT, 20)
    for i in chosen:
        sides = []
        for sign in (1, -1):
            moved = loss_weights.clone()
            moved[i] += sign * 1e-4
            sides.append(validation_loss(*solved(moved)))
        truth[i] = (sides[0] - sides[1]) / 2e-4
    torch.testing.assert_close(exact[list(chosen)], truth[list(chosen)], rtol=1e-5, atol=1e-9)


def soft_target(logits: Tensor) -> SoftTarget:
    """Learned soft labels, softmax(logits [n, C]), with loss weight 1."""
    rows = logits.softmax(1)
    hard = hard_target(data(0)[1], torch.ones(COUNT, dtype=logits.dtype))
    return hard._replace(rows=torch.stack([rows, rows], 1))


def test_many_terms_give_the_exact_hypergradient_of_soft_labels_and_none_is_gradient_matching() -> None:
    """Exact: against differences of problems solved again. Without terms: d/dphi of -alpha <grad L_val, grad L>."""
    ones, alpha = torch.ones(COUNT, dtype=torch.float64), 2.0
    logits = torch.randn(COUNT, CLASSES, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    network, weights = solved(ones, soft_target(logits))
    v = validation_gradient(network, weights)
    logits.requires_grad_()

    def found(terms: int) -> Tensor:
        problem = Problem(network, weights, Samples(data(0)[0], soft_target(logits)), losses, COUNT)
        u = implicit_direction(problem, v, alpha=alpha, terms=terms, damping=DECAY)
        (gradient,) = pull_back(problem.samples, reverse(problem, u, images=False), {"logits": logits}).values()
        return gradient

    exact = torch.zeros_like(logits)
    for i in range(0, COUNT, 20):
        for c in range(CLASSES):
            sides = []
            for sign in (1, -1):
                moved = logits.detach().clone()
                moved[i, c] += sign * 1e-4
                sides.append(validation_loss(*solved(ones, soft_target(moved))))
            exact[i, c] = (sides[0] - sides[1]) / 2e-4
    assert cosine(found(300)[::20].flatten(), exact[::20].flatten()) > 0.9999
    leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
    trained = losses(functional_call(network, leaves, (data(0)[0],)), soft_target(logits)).sum() / COUNT
    slopes = torch.autograd.grad(trained, list(leaves.values()), create_graph=True)
    match = sum((slope * v[name]).sum() for name, slope in zip(leaves, slopes, strict=True))
    torch.testing.assert_close(found(0), torch.autograd.grad(-alpha * match, logits)[0], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("solver", "terms"), [("neumann", 300), ("cg", 40)])
def test_many_terms_give_the_exact_hypergradient(
    solver: Solver, terms: int, solution: tuple[Problem, Weights, Tensor]
) -> None:
    problem, v, exact = solution
    found = hypergradient(problem, implicit_direction(problem, v, solver=solver, alpha=2.0, terms=terms, damping=DECAY))
    assert cosine(found, exact) > 0.99999
    assert (found - exact).norm() < 1e-3 * exact.norm()


def test_the_first_term_is_the_identity(solution: tuple[Problem, Weights, Tensor]) -> None:
    problem, v, _ = solution
    for u in (
        implicit_direction(problem, v, solver="identity", alpha=0.3),
        implicit_direction(problem, v, solver="neumann", alpha=0.3, terms=0),
    ):
        for name, value in u.items():
            torch.testing.assert_close(value, -0.3 * v[name], rtol=1e-14, atol=0)


def test_the_error_falls_with_every_term(solution: tuple[Problem, Weights, Tensor]) -> None:
    problem, v, exact = solution
    found = [
        hypergradient(problem, implicit_direction(problem, v, alpha=1.0, terms=terms, damping=DECAY))
        for terms in (0, 2, 5, 10, 30, 100)
    ]
    errors = [float((h - exact).norm()) for h in found]
    assert all(later < before for before, later in itertools.pairwise(errors))
    assert errors[-1] < 0.05 * errors[0]


def test_an_alpha_that_is_too_large_is_refused(solution: tuple[Problem, Weights, Tensor]) -> None:
    problem, v, _ = solution
    largest = float(
        torch.linalg.eigvalsh(flat_hessian(problem.network, problem.weights, problem.samples.target.weight.detach()))[
            -1
        ]
    )
    limit = 2 / largest
    implicit_direction(problem, v, alpha=0.99 * limit, damping=DECAY)
    with pytest.raises(ValueError, match=r"1 - alpha H has an eigenvalue of about -1\.\d+; take alpha below") as error:
        implicit_direction(problem, v, alpha=1.02 * limit, damping=DECAY)
    assert float(str(error.value).split()[-1]) == pytest.approx(limit, rel=0.01)
    implicit_direction(problem, v, alpha=1.02 * limit, damping=DECAY, probes=0)


def test_a_hessian_with_negative_curvature_is_refused_and_damping_helps(
    solution: tuple[Problem, Weights, Tensor],
) -> None:
    problem, v, _ = solution
    images, labels = data(0)
    concave = Samples(images, hard_target(labels, -torch.ones(COUNT, dtype=torch.float64)))
    turned = Problem(problem.network, problem.weights, concave, losses, COUNT)
    with pytest.raises(ValueError, match="no alpha converges, as H has the eigenvalue -0"):
        implicit_direction(turned, v, alpha=0.1, terms=400)
    with pytest.raises(ValueError, match="raise damping"):
        implicit_direction(turned, v, solver="cg", damping=1e-3)
    implicit_direction(turned, v, alpha=0.1, terms=400, damping=1.0)
    implicit_direction(turned, v, solver="cg", damping=1.0)


def test_a_short_series_on_negative_curvature_is_the_derivative_of_so_many_steps_of_gradient_descent(
    solution: tuple[Problem, Weights, Tensor],
) -> None:
    problem, v, _ = solution
    images, labels = data(0)
    weights = torch.linspace(-1, 1, COUNT, dtype=torch.float64)
    turned = Problem(problem.network, problem.weights, Samples(images, hard_target(labels, weights)), losses, COUNT)
    hessian = flat_hessian(problem.network, problem.weights, weights)
    assert torch.linalg.eigvalsh(hessian)[0] < -0.01
    flat = torch.cat([value.flatten() for value in v.values()])
    step = torch.eye(len(hessian), dtype=torch.float64) - 0.1 * hessian
    expected = -0.1 * sum(torch.linalg.matrix_power(step, j) @ flat for j in range(6))
    found = implicit_direction(turned, v, alpha=0.1, terms=5, damping=DECAY)
    torch.testing.assert_close(torch.cat([u.flatten() for u in found.values()]), expected, rtol=1e-9, atol=1e-12)


def along_curvatures(*curvatures: float) -> tuple[Problem, Weights]:
    """L(w) = sum_i c_i w_i^2 / 2, so that these are the eigenvalues of its Hessian, and a v that has all of them."""
    network, diagonal = nn.Linear(1, len(curvatures), bias=False).double(), torch.tensor(curvatures).double()
    weights = {name: p.detach() for name, p in network.named_parameters()}
    one = Samples(torch.ones(1, 1, dtype=torch.float64), hard_target(torch.zeros(1, dtype=torch.long)))
    problem = Problem(network, weights, one, lambda logits, _: (diagonal * logits**2).sum(1) / 2, 1)
    return problem, {name: torch.ones_like(w) for name, w in weights.items()}


@pytest.mark.parametrize("terms", [8, 10_000_000])
def test_on_negative_curvature_the_last_term_may_double_and_no_more(terms: int) -> None:
    problem, v = along_curvatures(-1.0, 1.0)
    found = implicit_direction(problem, v, alpha=0.1, terms=7)["weight"][0, 0]  # 1.1^7 < 2 < 1.1^8
    assert found.item() == pytest.approx(-0.1 * sum(1.1**j for j in range(8)))
    with pytest.raises(ValueError, match=r"eigenvalue of about 1\.1; no alpha converges.* set damping above 1"):
        implicit_direction(problem, v, alpha=0.1, terms=terms)


def test_an_alpha_too_large_for_positive_curvature_is_told_beside_negative_curvature() -> None:
    problem, v = along_curvatures(-4.0, 22.0)  # 1.4 is let pass in a series this short, -1.2 is not
    with pytest.raises(ValueError, match=r"eigenvalue of about -1\.2; take alpha below 0\.0909"):
        implicit_direction(problem, v, alpha=0.1, terms=1)
    implicit_direction(problem, v, alpha=0.09, terms=1)


class Deep(nn.Module):
    """BatchNorm, dropout and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.drop = nn.Linear(PIXELS, 8), nn.BatchNorm1d(8), nn.Dropout(0.3)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.drop(torch.tanh(self.norm(self.stem(x)))))
        return out


def deep_problem(make: Callable[[], nn.Module] = Deep) -> tuple[Problem, Weights]:
    torch.manual_seed(1)
    network = make().double()
    images, labels = data(0)
    weights = {name: p.detach().clone() for name, p in network.named_parameters()}
    v = {name: torch.randn_like(w) for name, w in weights.items()}
    target = hard_target(labels, torch.ones(COUNT, dtype=torch.float64))
    return Problem(network, weights, Samples(images, target), losses, COUNT, seed=3), v


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (None, ["head.weight", "head.bias"]),
        (["*.weight"], ["stem.weight", "norm.weight", "head.weight"]),
        (["stem.*"], ["stem.weight", "stem.bias"]),
    ],
)
def test_other_weights_are_left_out_of_the_direction_and_not_asked_of_v(
    patterns: list[str] | None, expected: list[str]
) -> None:
    problem, v = deep_problem()
    u = implicit_direction(problem, v, alpha=0.05, parameters=patterns, damping=3.0)
    assert list(u) == expected
    assert all(bool(value.any()) for value in u.values())
    few = {name: v[name] for name in expected}
    again = implicit_direction(problem, few, alpha=0.05, parameters=patterns, damping=3.0)
    assert all(torch.equal(again[name], value) for name, value in u.items())


def test_second_derivatives_pass_batch_norm_and_dropout() -> None:
    """alpha H v on the whole network, against differences of the gradient with the same masks."""
    problem, v = deep_problem()
    one = implicit_direction(problem, v, alpha=0.01, terms=1, parameters=["*"], probes=0)
    product = {name: (2 * 0.01 * v[name] + one[name]) / 0.01**2 for name in v}  # u = -alpha (2 v - alpha H v)
    sides = []
    for sign in (1, -1):
        leaves = {name: (w + sign * 1e-5 * v[name]).requires_grad_() for name, w in problem.weights.items()}
        buffers = {name: b.clone() for name, b in problem.network.named_buffers()}
        torch.manual_seed(problem.seed)
        logits = functional_call(problem.network, {**leaves, **buffers}, (problem.samples.images,))
        loss = losses(logits, problem.samples.target).sum() / COUNT
        sides.append(torch.autograd.grad(loss, list(leaves.values())))
    for name, up, down in zip(v, *sides, strict=True):
        torch.testing.assert_close(product[name], (up - down) / 2e-5, rtol=1e-6, atol=1e-7)


def test_processes_add_their_products() -> None:
    """A slice whose products are summed with those of the other slice has the Hessian of both."""
    problem, v = deep_problem(lambda: nn.Sequential(nn.Linear(PIXELS, CLASSES)))
    images, target = problem.samples.images, problem.samples.target
    halves = [
        Problem(
            problem.network,
            problem.weights,
            Samples(images[part], SoftTarget(*(t[part] for t in target[:3]))),
            losses,
            COUNT,
        )
        for part in (slice(0, 20), slice(20, None))
    ]
    whole = implicit_direction(problem, v, alpha=0.5, terms=1, probes=0)
    parts = [implicit_direction(half, v, alpha=0.5, terms=1, probes=0) for half in halves]
    for name, value in whole.items():  # u is affine in H
        torch.testing.assert_close(parts[0][name] + parts[1][name] + 2 * 0.5 * v[name], value)
    doubled = implicit_direction(problem, v, alpha=0.5, terms=1, probes=0, over_processes=lambda x: 2 * x)
    for name, value in whole.items():
        torch.testing.assert_close(doubled[name] + 2 * 0.5 * v[name], 2 * (value + 2 * 0.5 * v[name]))


def test_network_buffers_and_generators_stay_as_they_are() -> None:
    problem, v = deep_problem()
    problem.network.zero_grad()
    before = {name: value.clone() for name, value in problem.network.state_dict().items()}
    random = torch.get_rng_state()
    for solver in ("neumann", "cg"):
        implicit_direction(problem, v, solver=solver, alpha=0.01, damping=5.0, parameters=["*"])
    assert all(torch.equal(before[name], value) for name, value in problem.network.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in problem.network.parameters())


def test_a_zero_v_gives_zeros() -> None:
    problem, v = deep_problem()
    zero = {name: torch.zeros_like(value) for name, value in v.items()}
    for solver in ("neumann", "cg", "identity"):
        u = implicit_direction(problem, zero, solver=solver, alpha=0.01, damping=0.1)
        assert not any(value.any() for value in u.values())


def test_wrong_arguments_are_named() -> None:
    problem, v = deep_problem()
    with pytest.raises(ValueError, match="solver 'lu' is unknown"):
        implicit_direction(problem, v, solver="lu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="alpha must be > 0"):
        implicit_direction(problem, v, alpha=0.0)
    with pytest.raises(ValueError, match="cg needs damping"):
        implicit_direction(problem, v, solver="cg")
    with pytest.raises(ValueError, match="no trained weight matches"):
        implicit_direction(problem, v, parameters=["fc.*"])
    bare, v = deep_problem(lambda: nn.BatchNorm1d(PIXELS))
    with pytest.raises(ValueError, match="no trained linear layer"):
        implicit_direction(bare, v)
