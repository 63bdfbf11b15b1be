"""Docstrings of what other people's code calls: what it is, every argument by name, shapes of tensors, errors.

Read from the source, as docs/reference.md is. A method may leave to its class what the class says.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PUBLIC = {  # file: names, or everything without an underscore
    "api.py": (),
    "targets.py": (),
    "seeding.py": (),
    "hypergrad/__init__.py": (),
    "hypergrad/problem.py": (),
    "ops/crop_mix/__init__.py": (),
    "ops/crop_mix/sampling.py": ("Sampling", "sample_crop_mix"),
    "ops/crop_mix/soften.py": ("Soften",),
    "ops/crop_mix/params.py": ("CropMixParams", "identity_params", "some_samples"),
    "ops/crop_mix/masses.py": ("soft_targets",),
    "inference/saved_model.py": ("load",),
    "training/standalone_loader.py": ("loader",),
    "augment/__init__.py": ("load_policy",),
    "augment/fixed/base.py": (),
    "errors.py": (),
}
ARRAYS = re.compile(r"\b(Tensor|NDArray|IdArray|Pixels)\b")
SHAPE = re.compile(r"\[[A-Za-z0-9{][^\]]*\]|scalar|shape")
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Documented(NamedTuple):
    """A public function, method or class with fields: its name, its docstring with its class's, and its source."""

    name: str
    own: str
    text: str
    node: Function | ast.ClassDef


def documented(file: str, names: tuple[str, ...]) -> Iterator[Documented]:
    """What a file offers, methods among it."""
    tree = ast.parse((ROOT / "fastaug" / file).read_text())
    for node in tree.body:
        if not isinstance(node, (*Function.__args__, ast.ClassDef)) or node.name.startswith("_"):
            continue
        if names and node.name not in names:
            continue
        own = ast.get_docstring(node) or ""
        yield Documented(f"{file}:{node.name}", own, own, node)
        for method in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(method, Function.__args__) and (method.name == "__init__" or not method.name.startswith("_")):
                said = ast.get_docstring(method) or ""
                shown = said or (own if method.name == "__init__" else "")
                yield Documented(f"{file}:{node.name}.{method.name}", shown, f"{own}\n{said}", method)


ALL = [found for file, names in PUBLIC.items() for found in documented(file, names)]


@pytest.mark.parametrize("found", ALL, ids=lambda found: found.name)
def test_a_public_docstring_says_what_a_caller_needs(found: Documented) -> None:
    assert not list(missing(found))


def missing(found: Documented) -> Iterator[str]:
    """What a docstring lacks."""
    if not re.match(r"[\s\S]*?[.:!?](\s|$)", found.own):
        yield "a sentence that says what it is"
    for name in arguments(found.node):
        if not re.search(rf"\b{name}\b", found.text):
            yield f"the argument {name}"
    if ARRAYS.search(annotations(found.node)) and not SHAPE.search(found.text):
        yield "the shapes of its tensors"
    for error in raised(found.node):
        if error not in found.text:
            yield f"that it raises {error}"


def arguments(node: Function | ast.ClassDef) -> list[str]:
    """Arguments of a function, fields of a class."""
    if isinstance(node, ast.ClassDef):
        fields = [each.target for each in node.body if isinstance(each, ast.AnnAssign)]
        return [field.id for field in fields if isinstance(field, ast.Name) and not field.id.startswith("_")]
    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
    return [each.arg for each in given if each is not None and each.arg not in ("self", "cls")]


def annotations(node: Function | ast.ClassDef) -> str:
    """Types of arguments and result, or of fields."""
    if isinstance(node, ast.ClassDef):
        return " ".join(ast.unparse(each.annotation) for each in node.body if isinstance(each, ast.AnnAssign))
    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    types = [each.annotation for each in given] + [node.returns]
    return " ".join(ast.unparse(each) for each in types if each is not None)


def raised(node: Function | ast.ClassDef) -> set[str]:
    """Errors that a function raises in its own body; NotImplementedError is an interface's."""
    if isinstance(node, ast.ClassDef):
        return set()
    found = [each.exc for each in ast.walk(node) if isinstance(each, ast.Raise) and each.exc is not None]
    names = [each.func.id for each in found if isinstance(each, ast.Call) and isinstance(each.func, ast.Name)]
    return {name for name in names if name != "NotImplementedError"}


def test_the_test_finds_what_is_missing() -> None:
    source = "def cut(images: Tensor, side: int) -> Tensor:\n    'Cuts {}.'\n    raise ValueError('x')\n"
    for said, lacks in (
        ("images [N,C,H,W] to `side` pixels; ValueError if too small", []),
        ("images to `side`; ValueError", ["the shapes of its tensors"]),
        ("images [N,C,H,W]; ValueError", ["the argument side"]),
        ("images [N,C,H,W] to `side`", ["that it raises ValueError"]),
    ):
        node = ast.parse(source.format(said)).body[0]
        assert isinstance(node, ast.FunctionDef)
        text = ast.get_docstring(node) or ""
        assert list(missing(Documented("cut", text, text, node))) == lacks
    assert len(ALL) > 70
    reference = (ROOT / "docs" / "reference.md").read_text()
    for file in PUBLIC:
        module = "fastaug." + file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        assert f"::: {module}" in reference, module
