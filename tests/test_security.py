"""What ruff has no rule for: nothing in the project loads a file in a way that runs code from it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("fastaug", "tools", "benchmarks", "attacks", "docs", "examples")
FILES = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))
LOADERS = ("torch.load", "np.load", "numpy.load", "joblib.load")


def unsafe_loads(source: str) -> list[int]:
    """Lines of calls of torch.load without weights_only=True, or of numpy's with allow_pickle=True; joblib's all."""
    found = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name, given = ast.unparse(call.func), {word.arg: ast.unparse(word.value) for word in call.keywords}
        safe = (
            given.get("weights_only") == "True"
            if name == "torch.load"
            else given.get("allow_pickle", "False") == "False"
        )
        if name in LOADERS and (not safe or name == "joblib.load"):
            found.append(call.lineno)
    return found


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("torch.load(path)", [1]),
        ("torch.load(path, weights_only=False)", [1]),
        ("torch.load(path, weights_only=True)", []),
        ("x = 1\nnp.load(path, allow_pickle=True)", [2]),
        ("np.load(path)", []),
    ],
)
def test_an_unsafe_load_is_seen(source: str, lines: list[int]) -> None:
    assert unsafe_loads(source) == lines


def test_no_file_is_loaded_with_code() -> None:
    assert {str(file): lines for file in FILES if (lines := unsafe_loads(file.read_text()))} == {}
