import pickle
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment as timm_library
from torchvision.transforms import AutoAugmentPolicy, InterpolationMode, v2

from fastaug.augment.fixed.build import build_policy
from fastaug.seeding import Key, Stream, words

KEY = Key(seed=7, epoch=2, stream=Stream.POLICY)
SIZE = (40, 48)
MEAN = (0.485, 0.456, 0.406)
IDS = np.arange(100, 124)
TIMM = [
    "rand-m9-mstd0.5-inc1",
    "rand-m7-n3-p0.8",
    "rand-m15-mmax20-mstd101-t3aw-inc1",
    "rand-tweights",
    "augmix-m3-w3",
    "augmix-m5-w4-d4-a0.7-mstd1",
    "augmix-m5-w4-d2-b1",
    "augmix-m15-b0-d0-mstdinf",
    "rand-m12-inc2-mstdinf",
    "rand-m30-mmax30-p1.5-inc0",
    "rand-m30-mmax30-p1-inc1",
    "rand-n3-mmax0",
    "original",
    "originalr-mstd0.5",
    "v0",
    "v0r",
]
TORCHVISION = ["ta_wide", "ra", "ra-n3-m20", "aa", "aa-cifar10", "aa-svhn"]
ALL = [*TIMM, *TORCHVISION, "3a", "ra-n3-m20-tcolor"]


def photo_like(ids):
    """Smooth images with some noise, a function of the id: uint8 [N,H,W,3]."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] / 20
    images = []
    for i in ids:
        rng = np.random.default_rng(int(i))
        a, b, c = rng.uniform(1, 4, (3, 3))
        wave = np.sin(a * y[..., None] + b * x[..., None] + c) * 90 + 120 + rng.normal(0, 8, (*SIZE, 3))
        images.append(np.clip(wave, 0, 255).astype(np.uint8))
    return torch.from_numpy(np.stack(images))


def build(aa, **options):
    policy = build_policy(aa, img_size=SIZE, mean=MEAN, **options)
    assert policy is not None
    return policy


def global_states():
    return random.getstate(), pickle.dumps(np.random.get_state()), torch.get_rng_state().tolist()  # noqa: NPY002


def seed_globals(i, number=0):
    seed = int(words(KEY, [i], number + 1)[0, number])
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002
    torch.manual_seed(seed >> 1)


# ---- the libraries' own results ----


def timm_transform(aa, **more):
    hparams = {"translate_const": 18, "img_mean": (124, 116, 104), **more}
    if aa.startswith("rand"):
        return timm_library.rand_augment_transform(aa, hparams)
    if aa.startswith("augmix"):
        return timm_library.augment_and_mix_transform(aa, {**hparams, "translate_pct": 0.3})
    return timm_library.auto_augment_transform(aa, hparams)


def posterize(image, bits):
    """As Pillow did it before version 13, which refuses 0 bits; timm asks for them at magnitude 10."""
    return image.point([i & ~(2 ** (8 - bits) - 1) for i in range(256)] * 3)


def assert_same_as(transform, policy, number=0, ids=IDS):
    images = photo_like(ids)
    got = policy.apply(images, policy.sample(KEY, ids))
    changed = 0
    for i, image, result in zip(ids, images.numpy(), got.numpy(), strict=True):
        seed_globals(i, number)
        expected = np.asarray(transform(Image.fromarray(image)))
        np.testing.assert_array_equal(result, expected)
        changed += (result != image).any()
    assert changed > len(ids) / 2


@pytest.mark.parametrize("aa", TIMM)
def test_pixels_are_those_of_timm_for_the_same_draws(aa, monkeypatch):
    policy = build(aa)
    monkeypatch.setattr(timm_library.ImageOps, "posterize", posterize)
    assert_same_as(timm_transform(aa), policy, ids=np.arange(100))


def test_posterizing_to_no_bit_is_black():
    policy = build("rand-m10-n1-p1-inc1")
    params = policy.sample(KEY, np.arange(200))
    black = [ops for ops in params if ops[0].name == "PosterizeIncreasing"]
    assert {ops[0].args for ops in black} == {(0,)}
    assert not policy.apply(photo_like(range(len(black))), black).any()


@pytest.mark.parametrize("aa", TORCHVISION)
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_pixels_are_those_of_torchvision_for_the_same_draws(aa, interpolation):
    mode = InterpolationMode(interpolation)
    transforms = {
        "ta_wide": v2.TrivialAugmentWide(interpolation=mode),
        "ra": v2.RandAugment(interpolation=mode),
        "ra-n3-m20": v2.RandAugment(num_ops=3, magnitude=20, interpolation=mode),
        "aa": v2.AutoAugment(AutoAugmentPolicy.IMAGENET, interpolation=mode),
        "aa-cifar10": v2.AutoAugment(AutoAugmentPolicy.CIFAR10, interpolation=mode),
        "aa-svhn": v2.AutoAugment(AutoAugmentPolicy.SVHN, interpolation=mode),
    }
    assert_same_as(transforms[aa], build(aa, interpolation=interpolation))


def test_color_jitter_is_torchvisions():
    policy = build(None, color_jitter=0.4)
    assert_same_as(v2.ColorJitter(0.4, 0.4, 0.4), policy, number=1)


def test_timm_is_given_the_interpolation():
    aa = "rand-m9"
    expected = timm_transform(aa, interpolation=Image.Resampling.BICUBIC)
    assert_same_as(expected, build(aa, interpolation="bicubic"))


# ---- 3-Augment ----


def test_three_augment_is_one_of_three_then_colour_jitter():
    policy = build("3a")
    params = policy.sample(KEY, np.arange(600))
    chosen = [ops[0] for ops, _ in params]
    assert all(len(ops) == 1 for ops, _ in params)
    counts = {name: sum(op.name == name for op in chosen) for name in ("Solarize", "Desaturate", "GaussianBlur")}
    assert sum(counts.values()) == 600
    assert min(counts.values()) > 160  # expectation 200, standard deviation 11.5
    assert {op.args[0] for op in chosen if op.name == "Solarize"} == {128}
    radii = [op.args[0] for op in chosen if op.name == "GaussianBlur"]
    assert 0.1 <= min(radii) < 0.2
    assert 1.9 < max(radii) <= 2.0
    for factor in ("brightness_factor", "contrast_factor", "saturation_factor"):
        values = [jitter[factor] for _, jitter in params]
        assert 0.7 <= min(values) < 0.72
        assert 1.28 < max(values) <= 1.3


@pytest.mark.parametrize("aa", ["3a", "3a-mstd4"])
def test_three_augment_without_jitter_is_timms(aa):
    assert_same_as(timm_transform(aa), build(aa, color_jitter=0.0), ids=np.arange(60))


def test_three_augment_makes_grey_images_grey():
    policy = build("3a", color_jitter=0.0)
    params = policy.sample(KEY, IDS)
    images = policy.apply(photo_like(IDS), params)
    for image, (op,) in zip(images, params, strict=True):
        grey = bool((image == image[..., :1]).all())
        assert grey == (op.name == "Desaturate")


# ---- draws by (key, id) ----


@pytest.mark.parametrize("aa", ALL)
def test_an_image_does_not_depend_on_its_batch(aa):
    policy = build(aa)
    images = photo_like(IDS)
    together = policy.apply(images, policy.sample(KEY, IDS))
    order = np.random.default_rng(0).permutation(len(IDS))
    for part in np.array_split(order, [1, 8]):
        alone = policy.apply(images[part], policy.sample(KEY, IDS[part]))
        assert torch.equal(alone, together[part])


@pytest.mark.parametrize("aa", ALL)
def test_global_generators_are_neither_read_nor_changed(aa):
    policy = build(aa)
    images = photo_like(IDS)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    before = global_states()
    params = policy.sample(KEY, IDS)
    got = policy.apply(images, params)
    assert global_states() == before
    random.seed(2)
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(2)
    assert repr(policy.sample(KEY, IDS)) == repr(params)
    assert torch.equal(policy.apply(images, params), got)


def test_generators_are_restored_after_an_error():
    before = global_states()
    with pytest.raises((ValueError, OverflowError, TypeError)):
        build("ta_wide").sample(KEY, ["no id"])
    assert global_states() == before


class Meanwhile:
    """What other threads of the process draw: from torch, NumPy, Python and timm's own operations, each seeded."""

    def __init__(self):
        self.flip = timm_library.AugmentOp("ShearX", prob=0.5, magnitude=9)

    def draw(self, i):
        seed_globals(i)
        ops = [bool(np.asarray(self.flip(Image.new("RGB", (4, 4), (255, 255, 255)))).all()) for _ in range(4)]
        return torch.rand(3).tolist(), torch.nn.functional.dropout(torch.ones(8)).tolist(), random.random(), ops


@pytest.mark.parametrize("aa", ["rand-m9-mstd0.5-inc1", "augmix-m3-w3", "ta_wide", "3a"])
def test_threads_that_sample_and_threads_that_draw_do_not_see_each_other(aa):
    policy, meanwhile = build(aa), Meanwhile()
    expected, drawn = policy.sample(KEY, IDS), [meanwhile.draw(i) for i in range(30)]
    switching = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(3) as pool:
            sampled = [pool.submit(policy.sample, KEY, IDS) for _ in range(20)]
            assert [meanwhile.draw(i) for i in range(30)] == drawn
            assert all(repr(one.result()) == repr(expected) for one in sampled)
    finally:
        sys.setswitchinterval(switching)


@pytest.mark.parametrize("aa", ALL)
def test_key_and_id_change_the_draws(aa):
    policy = build(aa)
    base = repr(policy.sample(KEY, IDS))
    for key in (KEY._replace(seed=8), KEY._replace(epoch=3)):
        assert repr(policy.sample(key, IDS)) != base
    assert repr(policy.sample(KEY, IDS + 1)) != base
    assert repr(policy.sample(KEY.on(Stream.ORDER), IDS)) == base  # the policy has a stream of its own


@pytest.mark.parametrize("aa", ["rand-m9-mstd0.5-inc1", "augmix-m3-w3", "ta_wide", "3a"])
def test_threads_change_nothing(aa):
    policy = build(aa)
    images = photo_like(IDS)
    expected = policy.apply(images, policy.sample(KEY, IDS))
    parts = np.array_split(np.arange(len(IDS)), 8)
    with ThreadPoolExecutor(4) as pool:
        got = pool.map(lambda part: policy.apply(images[part], policy.sample(KEY, IDS[part])), parts)
    assert torch.equal(torch.cat(list(got)), expected)


@pytest.mark.parametrize("aa", ALL)
def test_policies_and_parameters_travel_between_processes(aa):
    policy = build(aa)
    params = policy.sample(KEY, IDS)
    images = photo_like(IDS)
    copy, sent = pickle.loads(pickle.dumps((policy, params)))
    assert torch.equal(copy.apply(images, sent), policy.apply(images, params))
    assert repr(copy.sample(KEY, IDS)) == repr(params)


@pytest.mark.parametrize("aa", ALL)
def test_the_input_is_left_alone_and_strides_do_not_matter(aa):
    policy = build(aa)
    images = photo_like(IDS)
    before = images.clone()
    params = policy.sample(KEY, IDS)
    got = policy.apply(images, params)
    strided = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert torch.equal(policy.apply(strided, params), got)
    assert torch.equal(images, before)
    assert got.is_contiguous()
    assert got.data_ptr() != images.data_ptr()


def test_randaugment_picks_every_operation_equally():
    policy = build("rand-m9-p1-inc1")
    params = policy.sample(KEY, np.arange(1500))
    names = [op.name for ops in params for op in ops]
    counts = np.unique(names, return_counts=True)[1]
    assert len(names) == 3000
    assert len(counts) == 15
    assert ((counts - 200) ** 2 / 200).sum() < 40  # chi-square with 14 degrees of freedom: p < 3e-4


def test_what_moves_no_pixels_is_drawn_alone_and_equally():
    params = build("ra-n2-m15-tcolor").sample(KEY, np.arange(1500))
    names, counts = np.unique([name for choices in params for name, _ in choices], return_counts=True)
    assert names.tolist() == ["AutoContrast", "Color", "Equalize", "Identity", "Invert", "Sharpness"]
    assert ((counts - 500) ** 2 / 500).sum() < 22  # chi-square with 5 degrees of freedom: p < 6e-4
    factors = {round(magnitude, 3) for choices in params for name, magnitude in choices if name == "Color"}
    assert factors == {-0.45, 0.45}  # half of 0.9
    images = photo_like(IDS)
    inverted = build("ra-n1-m15-tcolor").apply(images, [[("Invert", 0.0)]] * len(IDS))
    assert torch.equal(inverted, 255 - images)


# ---- nothing to do, errors, imports ----


@pytest.mark.parametrize("aa", [None, "", "none"])
def test_nothing_to_do_is_none(aa):
    assert build_policy(aa, img_size=32) is None


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"interpolation": "cubic"}, "interpolation 'cubic'.*bicubic"),
        ({"color_jitter": 1.5}, r"color_jitter.*1\.5"),
    ],
)
def test_unknown_settings_are_named(options, names):
    with pytest.raises(ValueError, match=names):
        build_policy(**{"aa": "ta_wide", "img_size": 32, **options})


def test_images_that_do_not_fit_are_named():
    policy = build("ta_wide")
    params = policy.sample(KEY, IDS)
    images = photo_like(IDS)
    for wrong in (images.float(), images[0], images.permute(0, 3, 1, 2)):
        with pytest.raises(ValueError, match=r"uint8 \[N,H,W,3\], found"):
            policy.apply(wrong, params)
    with pytest.raises(ValueError, match="24 images with the parameters of 23"):
        policy.apply(images, params[1:])


def test_the_libraries_are_imported_only_when_used():
    code = (
        "import sys, fastaug.augment, fastaug.recipe.policy_names\n"
        "assert 'torch' not in sys.modules\n"
        "import fastaug.augment.fixed.build\n"
        "assert not {'timm', 'torchvision', 'kornia'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
