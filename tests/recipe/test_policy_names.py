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
        ("aa", {}),
        ("aa-cifar10", {"": "cifar10"}),
    ],
)
def test_names_are_taken_apart(text, sections):
    name = parse_policy(text)
    assert name is not None
    assert (name.text, name.family, name.sections) == (text, text.split("-")[0], sections)
    assert name.library == ("torchvision" if name.family in ("ta_wide", "ra", "aa") else "timm")


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
        ("rand-m15", "m15 .* is above 10; raise it with mmax"),
        ("rand-m15-mmax12", "m15 .* is above 12"),
        ("rand-n0", r"'n0' .* must be in \[1, inf\]"),
        ("rand-p1.5", r"'p1.5' .* must be in \[0, 1\]"),
        ("rand-inc2", r"'inc2' .* must be in \[0, 1\]"),
        ("rand-tweight", "'tweight' .* known: tweights, t3a, t3aw"),
        ("augmix-m11", r"'m11' .* must be in \[0, 10\]"),
        ("augmix-b1", "unknown section 'b1'"),
        ("augmix-w0", r"\[1, inf\]"),
        ("original-m9", "unknown section 'm9' .* known: mstd"),
        ("ta_wide-m9", "unknown section 'm9' .* ta_wide has none"),
        ("ra-m31", r"\[0, 30\]"),
        ("aa-cifar100", "'cifar100' .* known: imagenet, cifar10, svhn"),
        ("aa-svhn-cifar10", "given twice"),
        ("none-m9", "none has none"),
    ],
)
def test_the_part_that_is_not_known_is_named(text, names):
    with pytest.raises(ValueError, match=names):
        parse_policy(text)
