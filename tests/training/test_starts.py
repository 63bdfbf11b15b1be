"""The lines of starts.jsonl as they are read back."""

import json
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator

from fastaug.training.starts import FILE, read_starts, start_of, this_start


def test_the_last_start_before_an_update_trained_it(tmp_path: Path) -> None:
    lines = ['{"step": 0, "processes": 2}', '{"step": 4, "processes": 1}', "[]", '{"step": 4, "processes": 3}', '{"st']
    (tmp_path / FILE).write_text("\n".join(lines))
    starts = read_starts(tmp_path)
    assert [start["processes"] for start in starts] == [2, 1, 3]
    found = [start_of(starts, step) for step in (0, 3, 4, 9)]
    assert [start and start["processes"] for start in found] == [2, 2, 3, 3]
    assert start_of(starts[1:], 3) is None
    assert read_starts(tmp_path / "gone") == []


def test_a_start_says_what_it_runs_on() -> None:
    start = this_start(Accelerator(cpu=True), 7)
    assert (start["step"], start["processes"], start["precision"]) == (7, 1, "no")
    assert start["device"].startswith("cpu ")
    assert {"torch", "timm"} <= start["versions"].keys()


RANKS = """
import json, sys
from pathlib import Path
from fastaug.distributed import Peers, build_accelerator
from fastaug.errors import RecipeError
from fastaug.recipe.schema import Recipe
from fastaug.training import starts
recipe, found = Recipe(), []
accelerator = build_accelerator(recipe)
rank, hosts = accelerator.process_index, ["a", "b", "b"]
starts.commit = lambda: ["5e1f", "5e1f", None][rank]  # there is no git on host b for process 2
starts.check_same_start(recipe, accelerator, hosts)
recipe.data.root, recipe.data.threads = f"/scratch/{rank}", rank  # a machine's own
starts.check_same_start(recipe, accelerator, hosts)
if rank == 2:
    recipe.run.log_every, recipe.optim.lr = 7, 0.5
if rank == 1:
    starts.versions = lambda: {"torch": "1.0"}
    starts.commit = lambda: "c0de"
try:
    starts.check_same_start(recipe, accelerator, hosts)
except RecipeError as error:
    found = error.problems
Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(found))
accelerator.end_training()
"""


def test_processes_of_other_keys_or_versions_are_named_to_all_with_their_hosts(
    tmp_path: Path, in_processes: Callable[..., str]
) -> None:
    (tmp_path / "ranks.py").write_text(RANKS)
    in_processes(3, tmp_path / "ranks.py", tmp_path)
    first, second, third = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3))
    assert first == second == third
    versions, keys = first
    assert versions.startswith("process 1 on b: ")
    assert "commit is 'c0de' there and '5e1f' in process 0" in versions
    assert "torch is '1.0' there and " in versions
    assert keys == (
        "process 2 on b: optim.lr is 0.5 there and 0.1 in process 0; run.log_every is 7 there and 50 in process 0; "
        "start every process with the same recipe, versions and commit"
    )
