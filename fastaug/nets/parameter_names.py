"""Sets of a network's parameters by name: patterns as fnmatch has them, and the words `head` and `backbone`."""

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from fastaug.errors import RecipeError

BACKBONE, HEAD = "backbone", "head"  # words that a recipe may use in place of a pattern


def head_prefixes(network: nn.Module) -> tuple[str, ...]:
    """What names of the classifier's parameters begin with, as timm's pretrained_cfg says; () where it says nothing."""
    named = (getattr(network, "pretrained_cfg", None) or {}).get("classifier") or ()
    return tuple(f"{head}." for head in ([named] if isinstance(named, str) else named))


def in_head(network: nn.Module, names: Iterable[str]) -> set[str]:
    """Those of `names` that belong to the classifier."""
    heads = head_prefixes(network)
    return {name for name in names if name.startswith(heads)} if heads else set()


def matched(network: nn.Module, pattern: str, key: str) -> list[str]:
    """Names of the parameters that `pattern` means, in the network's order; RecipeError of `key` when there are none.

    `head`: those of the classifier, `backbone`: all others; else a pattern of fnmatch for whole names (`blocks.0.*`).
    """
    names = [name for name, _ in network.named_parameters()]
    if pattern in (HEAD, BACKBONE):
        head = in_head(network, names)
        found = [name for name in names if (name in head) == (pattern == HEAD)]
        if not head:
            kind = type(network).__name__
            raise RecipeError([f"{key}: {pattern!r}: timm names no classifier of {kind}; write patterns of names"])
    else:
        found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)
        modules = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
        raise RecipeError(
            [
                f"{key}: {pattern!r} matches none of the {len(names)} parameters (whole names count: {near[0]!r}, "
                f"'{near[0].split('.')[0]}.*'); the network's modules: {modules}"
            ]
        )
    return found
