from fastaug.nets.plateau import Plateau
from fastaug.recipe.schema import Optim


def fallen(figures: list[float], **keys: object) -> list[float]:
    """The factor after each epoch."""
    plateau = Plateau(Optim(sched="plateau", decay_rate=0.5, **keys))  # type: ignore[arg-type]
    found = []
    for epoch, figure in enumerate(figures, 1):
        plateau.see(figure, epoch)
        found.append(plateau.factor)
    return found


def test_the_rate_falls_after_patience_and_waits_again() -> None:
    assert fallen([0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5], patience_epochs=2) == [1, 1, 1, 0.5, 0.5, 0.5, 0.25]
    assert fallen([0.5, 0.6, 0.7, 0.7, 0.6], patience_epochs=0) == [1, 1, 1, 0.5, 0.25]


def test_a_better_figure_renews_the_patience() -> None:
    assert fallen([0.5, 0.5, 0.6, 0.5, 0.5, 0.5], patience_epochs=2) == [1, 1, 1, 1, 1, 0.5]


def test_epochs_of_the_warm_up_do_not_count() -> None:
    assert fallen([0.5] * 6, patience_epochs=1, warmup_epochs=3.0) == [1, 1, 1, 1, 0.5, 0.5]


def test_the_state_continues() -> None:
    plateau = Plateau(Optim(sched="plateau", patience_epochs=1))
    for epoch in (1, 2, 3):
        plateau.see(0.5, epoch)
    again = Plateau(plateau.optim)
    again.load_state_dict(plateau.state_dict())
    assert again == plateau
    assert again.factor == 0.1
