import math

import pytest

from fastaug.recipe.policy_names import FAMILIES, parse_policy


@pytest.mark.parametrize(
    ("text", "sections"),
    [
        ("rand-m9-mstd0.5-inc1", {"m": 9, "mstd": 0.5, "inc": 1}),
        ("rand-inc1-t3aw-p0.25", {"inc": 1, "t": "3aw", "p": 0.25}),
        ("augmix-m3-w3", {"m": 3, "w": 3}),
        ("original", {}),
        ("v0-mstd1", {"mstd": 1.0}),
        ("ta_wide", {}),
        ("ra-n2-m30", {"n": 2, "m": 30}),
        ("ra-m7-tcolor", {"m": 7, "t": "color"}),
        ("rand-m15-inc2-mstdinf", {"m": 15, "inc": 2, "mstd": math.inf}),
        ("augmix-m11-w3-b1", {"m": 11, "w": 3, "b": 1}),
        ("aa", {}),
        ("aa-cifar10", {"": "cifar10"}),
    ],
)
def test_names_are_taken_apart(text, sections):
    name = parse_policy(text)
    assert name is not None
    assert (name.text, name.family, name.sections) == (text, text.split("-")[0], sections)
    assert name.library == ("torchvision" if name.family in ("ta_wide", "ra", "aa") else "timm")


def test_a_path_may_hold_anything():
    name = parse_policy("file:/lists/dada-cifar10 m9.json")
    assert (name.family, name.path, name.library) == ("file", "/lists/dada-cifar10 m9.json", "torchvision")
    assert parse_policy("ta_wide").path is None


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_alone_is_a_policy(family):
    assert (parse_policy(family) is None) == (family == "none")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("randaug", "unknown policy 'randaug' in 'randaug'; known: rand, augmix"),
        ("Rand-m9", "unknown policy 'Rand'"),
        ("rand-x9", "unknown section 'x9' in policy 'rand-x9'; known: m, n, p"),
        ("rand-9", "unknown section '9'"),
        ("rand-m", "unknown section 'm'"),
        ("rand-m-9", "unknown section 'm'"),
        ("rand-", "unknown section ''"),
        ("rand-m9-m8", "section 'm' is given twice"),
        ("rand-m9.5", "'m9.5' in policy .* must be a whole number"),
        ("rand-n101", r"'n101' .* must be in \[0, 100\]"),
        ("rand-mmax1000001", r"must be in \[0, 1e\+06\]"),
        ("rand-minf", "unknown section 'minf'"),
        ("ra-mstdinf", "unknown section 'mstdinf'"),
        ("rand-tweight", "'tweight' .* known: tweights, t3a, t3aw"),
        ("augmix-b0.5", "'b0.5' .* must be a whole number"),
        ("augmix-w0", r"\[1, 100\]"),
        ("original-m9", "unknown section 'm9' .* known: mstd"),
        ("ta_wide-m9", "unknown section 'm9' .* ta_wide has none"),
        ("ra-m31", r"\[0, 30\]"),
        ("ra-tgeometry", "'tgeometry' .* known: tcolor"),
        ("file:", "lacks the path of a list of sub-policies; write file:PATH"),
        ("aa-cifar100", "'cifar100' .* known: imagenet, cifar10, svhn"),
        ("aa-svhn-cifar10", "given twice"),
        ("none-m9", "none has none"),
    ],
)
def test_the_part_that_is_not_known_is_named(text, names):
    with pytest.raises(ValueError, match=names):
        parse_policy(text)
