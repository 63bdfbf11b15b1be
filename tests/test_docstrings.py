"""Docstrings of what other people's code calls: what it is, every argument by name, shapes, units, errors, sources.

Read from the source, as docs/reference.md is. A method may leave to its class what the class says. What carries a unit
is told by its name (UNITS); what needs a source, by an equation in its docstring or by what it calls (FORMULA).
"""

import ast
import calendar
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PUBLIC = {  # file: names, or everything without an underscore
    "api.py": (),
    "targets.py": (),
    "losses.py": (
        *("target_entropy", "soft_kl", "symmetric_kl", "soft_focal", "soft_bce", "soft_gce"),
        *("trimmed", "divergence", "mixed_losses", "adjusted"),
    ),
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
    "training/evaluation_checks.py": ("Checks",),
    "augment/__init__.py": ("load_policy",),
    "augment/fixed/base.py": (),
    "errors.py": (),
}
ARRAYS = re.compile(r"\b(Tensor|NDArray|IdArray|Pixels)\b")
SHAPE = re.compile(r"\[[A-Za-z0-9{][^\]]*\]|scalar|shape")
UNITS = {  # in what: names of arguments, fields and functions that are such a quantity, words that say so
    "pixels": (r"d[xy]|box|size|height|width|shift|limit|sigma", r"\bpixels?\b|\bshare of"),
    "shares or probabilities": (
        r"v|p_max|.*threshold|smoothing|visibility|hflip|strength|.*mass|.*prob|.*probability|probabilities|.*confidence"
        r"|.*share|share_of|softness|uniform|tolerance",
        r"\b[Ss]hares?\b|[Pp]robabilit|\bchance|\[0, 1[])]|\bvisible\b|\bmass(es)?\b.* sum to 1",
    ),
    "levels of colour": (r"images?|fill|fill_value|mean|std|white", r"uint8|float|normalised|\blevels?\b|\[0, 1\]"),
    "nats": (
        r".*entropy|.*_kl|divergence|soft_(focal|bce|gce)|mixed_losses|log_p|log_q|log_probabilities",
        r"\bnats?\b|natural log",
    ),
}
FORMULA = {"exp", "log", "log1p", "log_softmax", "logsumexp", "pow", "sigmoid", "softmax", "sqrt"}  # or an exponent, **
EQUATION = re.compile(r"\w\)?\]? = [^,;.]*\w[)\]]? ?[-+*/^] ?[(\w]|\)\^\w|\bsum_\w")
MONTHS = "|".join(calendar.month_name[1:])
SOURCE = re.compile(rf"arXiv:\d{{4}}\.\d{{4,5}}|\b(?!{MONTHS})[A-Z]\w+( et al\.| & [A-Z]\w+)?,? (19|20)\d\d\b")
PAGE = re.compile(r"\bdocs/\w+\.md\b")  # a source where there is such a file
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
    yield from unmeasured(found)
    if is_formula(found) and not has_source(found):
        yield "the source of its formula"
    for error in raised(found.node):
        if error not in found.text:
            yield f"that it raises {error}"


def has_source(found: Documented) -> bool:
    """Whether its own docstring or its class's names a source; the module's is of all that stands in it, so of none."""
    return bool(SOURCE.search(found.text)) or any((ROOT / page).is_file() for page in PAGE.findall(found.text))


def unmeasured(found: Documented) -> Iterator[str]:
    """The quantities whose unit no sentence says that names them; of a function's own name, no sentence at all."""
    sentences = re.split(r"(?<=[.;])\s|\n\n", found.text)
    own = found.name.rpartition(":")[2].rpartition(".")[2]
    for name in dict.fromkeys([*arguments(found.node), own]):
        about = [each for each in sentences if name == own or re.search(rf"\b{name}\b", each)]
        for unit, (names, words) in UNITS.items():
            if re.fullmatch(names, name) and not any(re.search(words, each, re.S) for each in about):
                yield f"that {name} is in {unit}"


def is_formula(found: Documented) -> bool:
    """Whether a function's docstring writes an equation, or its body computes what is more than arithmetic."""
    if isinstance(found.node, ast.ClassDef):
        return bool(EQUATION.search(found.own))
    calls = [each.func for each in ast.walk(found.node) if isinstance(each, ast.Call)]
    named = {each.attr if isinstance(each, ast.Attribute) else getattr(each, "id", "") for each in calls}
    powers = [each for each in ast.walk(found.node) if isinstance(each, ast.BinOp) and isinstance(each.op, ast.Pow)]
    powers = [each for each in powers if not isinstance(each.left, ast.Constant)]  # 2**32 is a number
    return bool(named & FORMULA or powers or EQUATION.search(found.own))


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
    source = "def cut(images: Tensor, height: int) -> Tensor:\n    'Cuts {}.'\n    raise ValueError('x')\n"
    for said, lacks in (
        ("uint8 images [N,C,H,W] to `height` pixels; ValueError if too small", []),
        ("uint8 images to `height` pixels; ValueError", ["the shapes of its tensors"]),
        ("uint8 images [N,C,H,W]; ValueError", ["the argument height", "that height is in pixels"]),
        ("uint8 images [N,C,H,W] to `height` pixels", ["that it raises ValueError"]),
        ("images [N,C,H,W] to `height` pixels; ValueError", ["that images is in levels of colour"]),
        ("uint8 images [N,C,H,W] to `height`. Of pixels; ValueError", ["that height is in pixels"]),
    ):
        assert list(missing(one(source.format(said)))) == lacks, said
    source = "def power(v: Tensor) -> Tensor:\n    '{} of shares v [N].'\n    return {}\n"
    for said, body, lacks in (
        ("Twice", "2 * v", []),
        ("A bend", "v**2", ["the source of its formula"]),
        ("1 - (1 - v)^2", "v", ["the source of its formula"]),
        ("w = v / 2", "v", ["the source of its formula"]),
        ("A bend (Bent et al. 2020)", "v.exp()", []),
        ("A bend (arXiv:2211.04625)", "v.exp()", []),
        ("A bend (docs/meta.md)", "v.exp()", []),
        ("A bend (docs/nothing.md)", "v.exp()", ["the source of its formula"]),
        ("A bend. Made in March 2020,", "v.exp()", ["the source of its formula"]),
    ):
        assert list(missing(one(source.format(said, body)))) == lacks, said
    assert len(ALL) > 100


def one(source: str) -> Documented:
    """The function that a source defines."""
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.FunctionDef)
    text = ast.get_docstring(node) or ""
    return Documented(f"x.py:{node.name}", text, text, node)


def test_what_is_checked_stands_in_the_reference() -> None:
    reference = (ROOT / "docs" / "reference.md").read_text()
    for file in PUBLIC:
        module = "fastaug." + file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        assert f"::: {module}" in reference, module
