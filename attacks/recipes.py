"""Recipes that must be refused: hand-made ones of every kind, and for every key what its type and limits forbid.

All of them are found without torch, by `train.py --check`, but those of `bad_for_full_check`.
"""

import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from fastaug.recipe.schema import Recipe

GOOD = "data: {root: images}\n"


class BadRecipe(NamedTuple):
    """A file's `content` and the overrides given with it; `expected` has to stand in what is said, in one line."""

    name: str
    content: bytes
    overrides: tuple[str, ...]
    expected: str


def bad_recipes() -> list[BadRecipe]:
    """Over 200 bad recipes, the same every time: exit code 2 and no traceback, in less than a second each."""
    return [*_texts(), *_overrides(), *_of_every_key()]


def _texts() -> Iterator[BadRecipe]:
    """Files that are wrong."""
    texts: dict[str, tuple[str | bytes, str]] = {
        "unknown section": (GOOD + "optm: {lr: 1}", "optm: unknown key; did you mean 'optim'?"),
        "unknown key": (
            GOOD + "optim: {weight_decai: 1}",
            "optim.weight_decai: unknown key; did you mean 'weight_decay'",
        ),
        "key of another section": (GOOD + "train: {lr: 1}", "train.lr: unknown key"),
        "3,000 unknown keys": (
            GOOD + "run: {" + ", ".join(f"k{i}: 1" for i in range(3000)) + "}",
            "run.k0: unknown key",
        ),
        "key of 1,000 letters": (GOOD + "run: {" + 1000 * "x" + ": 1}", ": unknown key"),
        "number as a key": (GOOD + "run: {7: 1}", "run.7: unknown key"),
        "list as a key": (GOOD + "run: {[1]: 1}", "unknown key"),
        "key that is no character": (GOOD + 'run: {"\\ud800": 1}', "cannot be encoded as UTF-8"),
        "section is a number": (GOOD + "optim: 3", "optim: expected a mapping of keys, got 3 (int)"),
        "section is a list": (GOOD + "optim: [lr, 3]", "optim: expected a mapping of keys"),
        "section is empty": (GOOD + "optim:", "optim: expected a mapping of keys, got None"),
        "a list": ("- data", "the recipe: expected a mapping of keys"),
        "a word": ("hello", "the recipe: expected a mapping of keys"),
        "quoted number": (GOOD + "optim: {lr: '1e-3'}", "optim.lr: expected float, got '1e-3' (str); write it without"),
        "yes": (GOOD + "model: {ema: yes}", "model.ema: expected bool, got 'yes' (str)"),
        "octal": (GOOD + "run: {seed: 0o17}", "run.seed: expected int, got '0o17' (str)"),
        "underscore": (GOOD + "run: {seed: 1_000}", "run.seed: expected int, got '1_000' (str)"),
        "nan": (GOOD + "optim: {lr: .nan}", "optim.lr: nan is not a finite number"),
        "infinity": (GOOD + "optim: {lr: .inf}", "optim.lr: inf is not a finite number"),
        "overflow": (GOOD + "optim: {lr: 1e999}", "optim.lr: inf is not a finite number"),
        "huge rate": (GOOD + "optim: {lr: 1e308}", "optim.lr: 1e+308 must be at most"),
        "number of 5,000 digits": (GOOD + "run: {seed: 1" + 5000 * "0" + "}", "not valid YAML"),
        "duplicate key": (GOOD + "run: {seed: 1, seed: 2}", "key 'seed' stands twice"),
        "duplicate section": (GOOD + "run: {seed: 1}\nrun: {keep: 2}", "key 'run' stands twice"),
        "alias": (GOOD + "run: &a {seed: 1}\ntrain: *a", "aliases (*name) are not allowed"),
        "bomb of aliases": (
            GOOD + "a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nd: [*c,*c]",
            "aliases (*name) are not allow",
        ),
        "merge key": (GOOD + "run: {<<: {seed: 1}}", "merge keys (<<) are not allowed"),
        "python tag": (GOOD + "run: {dir: !!python/object/apply:os.getcwd []}", "tags (!name) are not allowed"),
        "own tag": (GOOD + "run: {dir: !env HOME}", "tags (!name) are not allowed"),
        "directive": ("%YAML 1.1\n---\n" + GOOD, "directives (%YAML) are not allowed"),
        "two documents": (GOOD + "---\nrun: {}", "expected a single document"),
        "open bracket": ("data: {root: x", "not valid YAML"),
        "tab": ("data:\n\troot: x", "not valid YAML"),
        "3,000 brackets": (GOOD + "run: {dir: " + 3000 * "[" + "}", "more than 20 lists or mappings in each other"),
        "30,000 brackets": (30_000 * "[", "more than 20 lists or mappings in each other"),
        "reference": (GOOD + "run: {dir: '${data.root}'}", "run.dir: '${data.root}' refers to other keys"),
        "to be filled in": (GOOD + "run: {dir: '???'}", "run.dir: '???' refers to other keys"),
        "list of 10 MB": (
            "data: {root: x, mean: [" + "0.5, " * 2_000_000 + "0.5]}",
            "larger than a recipe; at most 32,768",
        ),
        "text of 100 MB": (b"x" * 100_000_000, "larger than a recipe"),
        "long list": ("data: {root: x, mean: [" + "0.5, " * 2000 + "0.5]}", "data.mean: [0.5, 0.5, "),
        "long list of words": (
            GOOD + f"meta: {{layers: [{', '.join(5000 * ['a'])}]}}",
            "must have at most 256 elements",
        ),
        "NUL in the file": (b"data: {root: \0}", "not valid YAML"),
        "no UTF-8": (b"data: {root: \xff}", "cannot be read as a recipe"),
        "UTF-16": (GOOD.encode("utf-16"), "cannot be read as a recipe"),
        "a picture": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "cannot be read as a recipe"),
        "nothing": ("", "data.root: not set; name a folder of images"),
        "comments only": ("# nothing\n# at all", "data.root: not set"),
        "schema of tomorrow": ("schema: 999\n" + GOOD, "was written by a later fastaug"),
        "schema 0": ("schema: 0\n" + GOOD, "schema: 0 is not the number of a schema"),
        "schema true": ("schema: true\n" + GOOD, "schema: True is not the number of a schema"),
        "base that is not there": ("base: no/such.yaml\n" + GOOD, "no such recipe"),
        "base that is a number": ("base: 3\n" + GOOD, "base: expected the path of a YAML file, got 3"),
        "base that is a folder": ("base: .\n" + GOOD, "cannot be read as a recipe"),
        "base with NUL": ('base: "a\\0b"\n' + GOOD, "cannot be read as a recipe"),
        "base with a long name": ("base: " + 300 * "a" + "\n" + GOOD, "cannot be read as a recipe"),
    }
    for name, (text, expected) in texts.items():
        yield BadRecipe(name, text if isinstance(text, bytes) else text.encode(), (), expected)


def _overrides() -> Iterator[BadRecipe]:
    """Overrides that are wrong, by themselves or together."""
    long_name = 256 * "a"
    for text, expected in {
        "run.seed": "'run.seed': an override is written section.key=value",
        "\udc80un.seed=3": "'\\udc80un.seed': a key that cannot be encoded as UTF-8",
        "run.se\ned=3": "'run.se\\ned': unknown key",
        "=3": "'=3': an override is written section.key=value",
        "run..seed=3": "'run..seed=3': an override is written",
        "model.kwargs" + 5000 * ".a" + "=1": "an override is written section.key=value",
        "run.dir=[1": "run.dir: '[1' is not a YAML value",
        "run.seed.x=3": "run.seed: expected int, got {'x': 3} (dict)",
        "run=3": "run: expected a mapping of keys, got 3 (int)",
        "model.nane=x": "model.nane: unknown key; did you mean 'name'?",
        f"meta.layers=[{', '.join(30_000 * ['a'])}]": "meta.layers: a value of",
        "data.threads=1000000": "data.threads: 1000000 must be at most 1024",
        "optim.lr=1e308": "optim.lr: 1e+308 must be at most",
        'run.dir="a\\0b"': "run.dir: 'a\\x00b' holds a NUL character",
        'data.root="a\\0b"': "data.root: 'a\\x00b' holds a NUL character",
        'data.labels="\\0"': "data.labels: '\\x00' holds a NUL character",
        'data.splits="\\0"': "data.splits: '\\x00' holds a NUL character",
        'model.initial_checkpoint="\\0"': "model.initial_checkpoint: '\\x00' holds a NUL character",
        'model.name="resnet\\0"': "model.name: 'resnet\\x00' holds a NUL character",
        f"run.dir=runs/{long_name}": "run.dir: 'runs/aaaa",
        f"data.root=/{long_name}": "data.root: '/aaaa",
        f"data.root={500 * '/0123456789'}": "data.root: '/0123456789",
        "run.dir='  '": "run.dir: is empty",
        "data.root=''": "data.root: not set",
        "model.name=hf-hub:timm/resnet18.a1_in1k": "model.name: hf-hub:timm/resnet18.a1_in1k is fetched from the hub",
        "model.kwargs={checkpoint_path: x.pth}": "model.kwargs: {'checkpoint_path': 'x.pth'} has arguments",
        "model.kwargs={num_classes: 3}": "model.kwargs: {'num_classes': 3} has arguments",
        "augment.aa=rnad-m9": "augment.aa: unknown policy 'rnad'",
        "augment.aa=rand-x9": "augment.aa: unknown section 'x9'",
        "augment.aa=rand-n999999999": "augment.aa: section 'n999999999'",
        f"augment.aa=rand{'-m9' * 500}": "augment.aa: ",
        "meta.learn=[polisy]": "meta.learn: 'polisy' is not one of",
        "run.trackers=[neptune]": "run.trackers: 'neptune' is not one of aim, clearml, comet_ml",
        "train.accumulate=3": "train.accumulate: 3 does not divide train.batch_size = 256",
        "optim.warmup_epochs=100": "optim.warmup_epochs: 100.0 leaves nothing of train.epochs = 100",
        "optim.min_lr=0.2": "optim.min_lr: 0.2 is above optim.lr",
        "optim.decay_milestones=[30, 20]": "optim.decay_milestones: [30, 20] must rise",
        "data.scale=[0.9, 0.1]": "data.scale: [0.9, 0.1] must be [smallest, largest]",
        "data.loader=resident": "data.loader: resident keeps one decoded size",
        "data.loader=synthetic": "data.root: has no use with data.loader=synthetic",
        "eval.weights=ema": "eval.weights: ema needs model.ema = true",
        "augment.fill=random": "augment.fill: random does nothing unless augment.shift is above 0",
        "meta.every=3": "meta.learn: is empty",
        "meta.reuse=no/such": "meta.reuse: no/such: cannot be read",
        "meta.reuse=.": "meta.reuse: .: has no policy.json; name the folder of a run",
        f"meta.reuse={__file__}": f"meta.reuse: {__file__}: is no JSON, or was cut off",
        'meta.reuse="a\\0b"': "meta.reuse: 'a\\x00b' holds a NUL character",
    }.items():
        yield BadRecipe(text[:40], GOOD.encode(), (text,), expected)


def _of_every_key() -> Iterator[BadRecipe]:
    """For every key a value of a wrong type, and for every limit one beyond it."""
    for section in fields(Recipe):
        schema: Any = section.type
        for key, expected in get_type_hints(schema, include_extras=True).items():
            name = f"{section.name}.{key}"
            for value in (*_beyond(expected), _of_wrong_type(expected)):
                yield BadRecipe(f"{name}={value}", GOOD.encode(), (f"{name}={value}",), f"{name}: ")


def _of_wrong_type(expected: Any) -> str:
    """A YAML value that no key of this type takes."""
    if "dict" in str(expected):
        return "[no, mapping]"
    return "no_such_choice" if Literal in {get_origin(part) for part in (expected, *get_args(expected))} else "{a: 1}"


def _beyond(expected: Any) -> Iterator[str]:
    """YAML values just beyond each limit of a type; of a list's elements, in a list of the length it wants."""
    if get_origin(expected) is list:
        yield from (f"[{value}]" for value in _beyond(get_args(expected)[0]))
        return
    if get_origin(expected) is not Annotated:
        for part in get_args(expected):
            yield from _beyond(part)
        return
    inner, *extras = get_args(expected)
    limits = [each for extra in extras for each in getattr(extra, "metadata", [extra])]
    length = next((each.min_length for each in limits if hasattr(each, "min_length")), 1)
    for value in _beyond(inner):
        yield re.sub(r"^\[(.*)\]$", lambda match: f"[{', '.join(length * [match[1]])}]", value)
    whole = inner is int
    for each in limits:
        if hasattr(each, "ge"):
            yield str(each.ge - 1) if whole else str(each.ge - 1.0)
        if hasattr(each, "gt"):
            yield str(each.gt)
        if hasattr(each, "le"):
            yield str(2 * each.le + 1) if whole else str(2 * float(each.le) + 1)
        if hasattr(each, "lt"):
            yield str(each.lt)


def bad_for_full_check() -> list[BadRecipe]:
    """Recipes that only `--check=full` can refuse, which builds the network and passes images through it."""
    small, vit = "model.name=test_resnet", "model.name=vit_tiny_patch16_224"
    does_not_take = "vit_tiny_patch16_224 does not take RGB images of"
    return [
        BadRecipe(" ".join(overrides), GOOD.encode(), tuple(overrides), expected)
        for *overrides, expected in (
            ("model.name=resnet5O", "model.name: 'resnet5O' is not known to timm; did you mean"),
            ("optim.opt=adamww", "optim.opt: 'adamww' is not known to timm; did you mean"),
            (small, "model.kwargs={no_such: 1}", "model.name: test_resnet cannot be built"),
            (small, "model.kwargs={features_only: true}", "test_resnet gives list for 2 images"),
            (vit, "data.img_size=192", f"data.img_size: {does_not_take} 192 x 192 pixels"),
            (vit, "eval.img_size=256", f"data.img_size: {does_not_take} 256 x 256 pixels"),
            ("model.name=test_vit", "model.stem=small", "model.stem: small needs a ResNet-like network"),
            ("model.initial_checkpoint=no/such.pth", "model.initial_checkpoint: no file no/such.pth"),
            ("optim.opt_kwargs={no_such: 1}", "optim.opt: sgd cannot be built"),
        )
    ]
