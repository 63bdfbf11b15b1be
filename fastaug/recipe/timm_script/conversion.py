"""What arguments of timm's training script are here: the keys of a recipe, and a row of a table for every argument.

Facts of single arguments stand in arguments.yaml, what several of them make up together is worked out here, after what
timm's script does with them. An argument that nothing here has told is an error of ours, not passed over.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from fastaug.recipe.schema import Recipe
from fastaug.recipe.timm_script.arguments import Argument, all_arguments
from fastaug.recipe.timm_script.command_line import Given

Outcome = Literal["key", "lacks", "idle"]


class Row(NamedTuple):
    """What became of one argument."""

    argument: Argument
    value: Any
    given: bool
    outcome: Outcome
    keys: dict[str, Any]
    note: str

    @property
    def shows(self) -> bool:
        """Whether it says more than that an argument which nobody gave is at a default that both have."""
        return self.given or bool(self.keys) or self.outcome == "lacks"


@dataclass
class Conversion:
    """The recipe and its table, filled argument by argument."""

    source: Given
    keys: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.source.values[name]

    def given(self, name: str) -> bool:
        """Whether somebody gave the argument, be it at its default."""
        return name in self.source.given

    def sets(self, name: str, note: str = "", /, **keys: Any) -> None:
        """The argument becomes `section__key=value`, written down where given or where our default is another."""
        wanted = {key.replace("__", "."): value for key, value in keys.items()}
        kept = {key: value for key, value in wanted.items() if self.given(name) or value != default_of(key)}
        self.keys |= kept
        self.told(name, "key" if kept else "idle", kept, note or ("" if kept else "the default here too"))

    def lacks(self, name: str, note: str = "", /, **keys: Any) -> None:
        """The argument has no counterpart; `keys`, if any, come nearest."""
        wanted = {key.replace("__", "."): value for key, value in keys.items()}
        self.keys |= wanted
        self.told(name, "lacks", wanted, note or all_arguments()[name].lacks)

    def idle(self, name: str, note: str = "") -> None:
        """The argument changes nothing."""
        self.told(name, "idle", {}, note or all_arguments()[name].idle)

    def told(self, name: str, outcome: Outcome, keys: dict[str, Any], note: str) -> None:
        """The row of an argument, each once."""
        assert name not in self.rows, name
        self.rows[name] = Row(all_arguments()[name], self[name], self.given(name), outcome, keys, note)


def default_of(key: str) -> Any:
    """The default of "section.key"."""
    section, name = key.split(".")
    return getattr(getattr(Recipe(), section), name)
