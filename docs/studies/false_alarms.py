"""How often does evidence of harm lower an operation that harms nothing? Simulated trainings, without a network.

    python docs/studies/false_alarms.py --runs 100

Harm of a sample is normal noise, whatever it shows. Operations are drawn as at the start, or with --no-explore by the
probabilities that the evidence so far has left (meta.explore). Of a run counts the operation of which least is left at
its end.
"""

import argparse

import torch

from fastaug.meta.evidence import Evidence, Observation

OPERATIONS, SLOTS, NOTHING = 23, 2, 0.2  # NOTHING: probability of no operation, as in meta.identity
UPDATES, BATCH = 375, 64  # meta steps and their samples: letters_policy


def least_left(generator: torch.Generator, updates: int = UPDATES, *, explore: bool = True) -> float:
    """What a run ends with of its worst operation's odds against nothing, as a share of those at the start."""
    evidence, losses = Evidence(OPERATIONS), torch.zeros(BATCH, dtype=torch.float64)
    for _ in range(updates):
        left = (-evidence.falls() * (not explore)).exp() * (1 - NOTHING) / OPERATIONS
        probabilities = torch.cat([left.new_tensor([NOTHING]), left])
        op = torch.multinomial(probabilities, BATCH * SLOTS, replacement=True, generator=generator).view(BATCH, SLOTS)
        harm = torch.randn(BATCH, generator=generator, dtype=torch.float64)
        evidence.add(op, Observation(harm, losses), lambda local: local)
    return float((-evidence.falls()).exp().min())


def main() -> None:
    """Prints the share of runs in which an operation falls below a half, and below a quarter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100, help="(default 100)")
    parser.add_argument("--no-explore", action="store_true", help="as with meta.explore: false")
    parser.add_argument("--seed", type=int, default=0, help="(default 0)")
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(arguments.seed)
    explore = not arguments.no_explore
    least = torch.tensor([least_left(generator, explore=explore) for _ in range(arguments.runs)])
    for bound, name in ((0.5, "half"), (0.25, "a quarter")):
        print(f"an operation ends below {name}: {(least < bound).float().mean():.0%} of {arguments.runs} runs")


if __name__ == "__main__":
    main()
