"""BatchAugment joins recipe keys, policies, op and erasing; HiddenCutMix mixes inside a network."""

from dataclasses import replace

import pytest
import timm
import torch

from fastaug.augment.feature_cutmix import HiddenCutMix
from fastaug.augment.pipeline import BatchAugment
from fastaug.batch import Batch
from fastaug.errors import RecipeError
from fastaug.meta.learned_part import LearnedPart, Setting
from fastaug.meta.parameters import LearnedParts, build_parts
from fastaug.recipe.schema import Augment, Data, Meta, Recipe, Train
from fastaug.seeding import Key, Stream
from fastaug.targets import dense, mixed_weight

CLASSES, SIDE, N = 5, 24, 12
SGD = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)


def batch(ids=range(N)):
    ids = torch.tensor(list(ids), dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (100, SIDE, SIDE, 3), dtype=torch.uint8, generator=generator)
    return Batch(images[ids], ids % CLASSES, ids, ids)


def build(dtype=torch.float32, **keys):
    recipe = Recipe(data=Data(img_size=SIDE), train=Train(epochs=10), augment=Augment(**keys))
    return BatchAugment(recipe, CLASSES, dtype=dtype)


def test_nothing_asked_is_normalisation_and_hard_labels():
    given = batch()
    images, target = build(hflip=0.0).training(given, epoch=0)
    mean, std = torch.tensor(Data().mean), torch.tensor(Data().std)
    expected = ((given.images / 255 - mean) / std).permute(0, 3, 1, 2)
    torch.testing.assert_close(images, expected, rtol=1e-5, atol=1e-5)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert (dense(target, CLASSES) == torch.nn.functional.one_hot(given.labels, CLASSES)).all()
    torch.testing.assert_close(build().evaluation(given), images, rtol=0, atol=0)


def test_images_of_many_classes_mix_their_rows_by_area():
    recipe = Recipe(data=Data(img_size=SIDE), train=Train(epochs=10), augment=Augment(cutmix=1.0, soften="none"))
    table = (torch.rand(100, CLASSES, generator=torch.Generator().manual_seed(1)) < 0.5).to(torch.uint8)
    plain = BatchAugment(recipe, CLASSES)
    images, one = plain.training(batch(), epoch=1)
    same, many = BatchAugment(recipe, CLASSES, multi_hot=table).training(batch(), epoch=1)
    partner = plain.sample(batch(), 1).partner
    own = one.mass[:, :1] * table[:N] + one.mass[:, 1:] * table[:N][partner]
    assert torch.equal(same, images)
    assert ((own > 0) & (own < 1)).any()
    torch.testing.assert_close(dense(many, CLASSES), own, rtol=0, atol=1e-6)


@pytest.mark.parametrize("remode", ["const", "rand", "pixel"])
def test_grey_images_pass_with_all_that_is_asked(remode):
    data = Data(img_size=SIDE, channels=1, mean=[0.4], std=[0.2], known_shift="rotate45", known_shift_train=True)
    keys = {"shift": 0.3, "fill": "random", "cutmix": 1.0, "reprob": 1.0, "remode": remode, "cutout": 0.3}
    augment = BatchAugment(Recipe(data=data, train=Train(epochs=10), augment=Augment(**keys)), CLASSES)
    given = batch()
    given = given._replace(images=given.images[..., :1].contiguous())
    assert augment.training(given, epoch=1)[0].shape == (N, 1, SIDE, SIDE)
    alone = Batch(*(field[:1] for field in given))
    assert augment.training(alone, epoch=1)[0].shape == (2, 1, SIDE, SIDE)  # padded for BatchNorm
    assert augment.evaluation(given).shape == (N, 1, SIDE, SIDE)


EVERYTHING = {
    "shift": 0.3,
    "cutmix": 1.0,
    "mixup": 0.2,
    "mix_group": 4,
    "reprob": 0.5,
    "cutout": 0.3,
    "smoothing": 0.1,
    "fill": "random",
}


def test_a_sample_looks_the_same_in_any_micro_batch():
    augment = build(**EVERYTHING)
    whole, target = augment.training(batch(), epoch=3)
    parts = [augment.training(batch(range(start, start + 4)), epoch=3) for start in range(0, N, 4)]
    torch.testing.assert_close(torch.cat([images for images, _ in parts]), whole, rtol=0, atol=0)
    torch.testing.assert_close(torch.cat([t.mass for _, t in parts]), target.mass, rtol=0, atol=0)
    again, _ = augment.training(batch(), epoch=4)
    assert (again != whole).any()


def test_drawing_leaves_torchs_generator_alone():
    before = torch.get_rng_state()
    build(**EVERYTHING).training(batch(), epoch=0)
    assert (torch.get_rng_state() == before).all()


@pytest.mark.parametrize("key", ["shift", "cutmix", "mixup", "reprob", "cutout", "hflip"])
def test_each_key_changes_the_images(key):
    value = EVERYTHING.get(key, 1.0)
    plain, _ = build(hflip=0.0).training(batch(), epoch=0)
    changed, _ = build(**{"hflip": 0.0, key: 1.0 if key == "reprob" else value}).training(batch(), epoch=0)
    assert (plain != changed).flatten(1).any(1).float().mean() > 0.5


@pytest.mark.parametrize(
    "keys",
    [
        {},
        EVERYTHING,
        EVERYTHING | {"remode": "rand", "recount": 3},
        EVERYTHING | {"remode": "pixel"},
        {"shift": 0.4, "fill": "noise"},
    ],
    ids=["plain", "everything", "rand", "pixel", "noise"],
)
@pytest.mark.parametrize("images", [0, 1, N])
def test_bfloat16_images_are_the_rounded_ones(keys, images):
    """So that autocast, which rounds in the first layer, trains on the same numbers."""
    given = batch(range(images))
    exact, target = build(**keys).training(given, epoch=1)
    rounded, same = build(torch.bfloat16, **keys).training(given, epoch=1)
    assert rounded.dtype == torch.bfloat16
    assert rounded.is_contiguous(memory_format=torch.channels_last) or images < 2  # blank images are added by joining
    assert torch.equal(rounded, exact.to(torch.bfloat16))
    assert all(torch.equal(one, other) for one, other in zip(target[:3], same[:3], strict=True))
    if images:
        assert build(torch.bfloat16).evaluation(given).dtype == torch.float32


def test_copies_of_an_image_are_augmented_apart():
    one = batch([3, 3])
    images, _ = build(shift=0.3, hflip=0.0).training(one, epoch=0)
    assert (images[0] == images[1]).all()
    images, _ = build(shift=0.3, hflip=0.0).training(one._replace(draws=torch.tensor([3, 3 + (1 << 32)])), epoch=0)
    assert (images[0] != images[1]).any()


def test_the_shift_is_annealed_in_the_last_epochs():
    augment = build(shift=0.4, anneal_epochs=2, anneal_factor=1000)
    assert [augment.strength(epoch) for epoch in (0, 7, 8, 9)] == [1, 1, 0.001, 0.001]
    assert augment.sample(batch(), 7).dy.abs().max() > 0
    assert augment.sample(batch(), 8).dy.abs().max() == 0


def test_mixing_ends_and_nothing_else_changes():
    keys = {"cutmix": 1.0, "mixup": 0.2, "hflip": 0.5}
    mixed, ended, plain = build(**keys), build(**keys, mixup_off_epoch=2), build(hflip=0.5)
    here = batch()
    for epoch in (0, 1, 2, 5):
        found = ended.training(here, epoch)
        wanted = (mixed if epoch < 2 else plain).training(here, epoch)
        assert torch.equal(found[0], wanted[0])
        assert torch.equal(found[1].mass, wanted[1].mass)
    assert not torch.equal(mixed.training(here, 2)[0], plain.training(here, 2)[0])


def test_other_class_takes_the_missing_confidence():
    _, target = build(shift=0.4, other_class=True, soften="target").training(batch(), epoch=0)
    probabilities = dense(target, CLASSES + 1)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(N))
    assert (probabilities[:, CLASSES] > 0).any()
    assert (target.classes[:, 1] == CLASSES).all()


class TestHiddenCutMix:
    def network(self):
        return timm.create_model("test_resnet", num_classes=CLASSES).train()

    def keys(self, **more):
        return Augment(cutmix=1.0, mix_layer="layer1", mixup_mode="elem", **more)

    def test_features_are_pasted_and_lambda_is_the_exact_share(self):
        network, seen = self.network(), {}
        hidden = HiddenCutMix(network, self.keys(), 64)
        network.layer1.register_forward_hook(lambda *call: seen.update(mixed=call[2]))
        network.layer1.register_forward_hook(lambda *call: seen.update(plain=call[2]), prepend=True)
        given = batch()
        target = hidden.draw(Key(0, 0, Stream.MIX), given, CLASSES)
        network(torch.randn(N, 3, 64, 64))
        changed = (seen["mixed"] != seen["plain"]).any(1)
        cells = changed.shape[1] * changed.shape[2]
        torch.testing.assert_close(target.mass[:, 1], changed.flatten(1).sum(1) / cells, rtol=0, atol=1e-6)
        assert (target.mass[:, 1] > 0).any()

    def test_the_next_pass_and_evaluation_are_plain(self):
        network, inputs = self.network(), torch.randn(N, 3, 64, 64)
        hidden = HiddenCutMix(network, self.keys(), 64)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 0.0
        plain = network(inputs)
        hidden.draw(Key(0, 0, Stream.MIX), batch(), CLASSES)
        mixed = network(inputs)
        assert (mixed != plain).any()
        torch.testing.assert_close(network(inputs), plain)
        network.eval()
        expected = network(inputs)
        hidden.draw(Key(0, 0, Stream.MIX), batch(), CLASSES)
        torch.testing.assert_close(network(inputs), expected)

    def test_evaluation_at_another_size_changes_no_box(self):
        network = self.network()
        hidden = HiddenCutMix(network, self.keys(), 64)
        before = hidden.draw(Key(0, 0, Stream.MIX), batch(), CLASSES)
        network.eval()(torch.randn(2, 3, 96, 96))
        after = hidden.draw(Key(0, 0, Stream.MIX), batch(), CLASSES)
        assert (before.mass == after.mass).all()
        with pytest.raises(ValueError, match="feature maps"):
            network.train()(torch.randn(N, 3, 96, 96))

    @pytest.mark.parametrize("images", [0, 1])
    def test_blank_images_behind_the_batch_stay_as_they_are(self, images):
        network = self.network()
        hidden = HiddenCutMix(network, self.keys(), 64)
        hidden.draw(Key(0, 0, Stream.MIX), batch(range(images)), CLASSES)
        assert network(torch.randn(2, 3, 64, 64)).shape == (2, CLASSES)

    def test_measuring_leaves_the_network_as_it_was(self):
        network = self.network()
        before = {name: value.clone() for name, value in network.state_dict().items()}
        HiddenCutMix(network, self.keys(), 64)
        assert all((value == before[name]).all() for name, value in network.state_dict().items())
        assert network.training

    @pytest.mark.parametrize(("layer", "said"), [("layer9", "no module 'layer9'"), ("fc", "2-dimensional")])
    def test_layers_that_cannot_be_mixed_are_refused(self, layer, said):
        with pytest.raises(RecipeError, match=said):
            HiddenCutMix(self.network(), replace(self.keys(), mix_layer=layer), 64)


def test_dropblock_is_a_setting_of_timms_network():
    network = timm.create_model("test_resnet", drop_block_rate=0.1)
    assert any(type(module).__name__ == "DropBlock2d" for module in network.modules())


@pytest.mark.parametrize("images", [0, 1])
def test_a_batch_that_damage_left_too_small_is_padded_without_weight(images):
    inputs, target = build(**EVERYTHING).training(batch(range(images)), 0)
    assert inputs.shape == (2, 3, SIDE, SIDE)
    assert (target.weight[images:] == 0).all()
    assert (target.weight[:images] > 0).all()


@pytest.mark.parametrize(
    "keys",
    [
        {"shift": 0.3, "cutmix": 1.0, "soften": "both", "smoothing": 0.1},
        {"mixup": 0.8, "cutmix": 1.0, "reprob": 0.5},
        {"cutmix": 1.0, "mix_group": 4, "cutout": 0.3},
    ],
    ids=["soft", "mixed", "cutout"],
)
@pytest.mark.parametrize("n", [2, 7, N])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_part_is_what_training_gave_bit_for_bit(keys, n, dtype):
    meta = Meta(learn=["policy", "weights", *(["softness"] if "shift" in keys else [])], probabilities="score")
    recipe = Recipe(data=Data(img_size=SIDE), train=Train(epochs=10), augment=Augment(**keys), meta=meta)
    learned = build_parts(Setting(recipe, 100, CLASSES, SGD, torch.device("cpu")))
    weights = learned.tables()["weights"]
    weights.weight[:] = torch.rand(100, generator=torch.Generator().manual_seed(0))
    augment, given = BatchAugment(recipe, CLASSES, learned=learned, dtype=dtype), batch()
    images, target = augment.training(given, epoch=3)
    part = augment.part(given, epoch=3, chosen=torch.arange(n))
    assert part.images.dtype == torch.float32
    torch.testing.assert_close(part.images.to(dtype), images[:n], rtol=0, atol=0)
    for found, whole in zip(part.target[:3], target[:3], strict=True):
        torch.testing.assert_close(found, whole[:n], rtol=0, atol=0)
    assert part.images.requires_grad
    assert part.target.weight.requires_grad
    torch.testing.assert_close(part.rows["weights"], weights(part.ids), rtol=0, atol=0)


class SoftLabels(LearnedPart):
    """A soft label for every image and, beside it, a loss weight: two tables of one part."""

    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.labels, self.weights = torch.rand(100, CLASSES, generator=draw).softmax(1), torch.rand(100, generator=draw)

    def rows(self, ids):
        return {"labels": self.labels[ids].requires_grad_(), "weights": self.weights[ids].requires_grad_()}

    def target(self, target, view):
        weight = mixed_weight(target.mass, view.pairs(view.rows["weights"]))
        return target._replace(rows=view.pairs(view.rows["labels"]), weight=target.weight * weight)


@pytest.mark.parametrize("n", [2, 7])
def test_a_part_keeps_the_rows_of_soft_labels_and_knows_whose_they_are(n):
    learned = SoftLabels()
    augment = BatchAugment(
        Recipe(data=Data(img_size=SIDE), augment=Augment(cutmix=1.0, mix_group=4)), CLASSES, learned=learned
    )
    given = batch([5, 5, *range(10, 20)])
    _, target = augment.training(given, epoch=1)
    part = augment.part(given, epoch=1, chosen=torch.arange(n))
    assert target.rows.shape == (N, 2, CLASSES)
    torch.testing.assert_close(part.target.rows, target.rows[:n], rtol=0, atol=0)
    torch.testing.assert_close(target.rows[:, 0], learned.labels[given.ids], rtol=0, atol=0)
    assert (target.rows[:, 1] != target.rows[:, 0]).any()
    assert len(part.ids.unique()) == len(part.ids)
    gradients = torch.autograd.grad(part.target.rows.sum() + part.target.weight.sum(), list(part.rows.values()))
    assert [tuple(g.shape) for g in gradients] == [(len(part.ids), CLASSES), (len(part.ids),)]
    assert all((g != 0).flatten(1).any(1).all() if g.ndim > 1 else (g != 0).any() for g in gradients)


def test_blank_images_have_soft_labels_too():
    augment = BatchAugment(Recipe(data=Data(img_size=SIDE)), CLASSES, learned=SoftLabels())
    inputs, target = augment.training(batch([3]), 0)
    assert len(inputs) == len(target.rows) == 2
    torch.testing.assert_close(target.rows[1].sum(1), torch.ones(2))
    assert target.weight[1] == 0


def test_effects_of_several_parts_add_up():
    def scaled(by):
        class Scaled(LearnedPart):
            def target(self, target, view):
                assert len(view.batch.ids) == N
                return target._replace(weight=target.weight * by)

        return Scaled()

    parts = LearnedParts({"two": scaled(2.0), "three": scaled(3.0)})
    _, target = BatchAugment(Recipe(data=Data(img_size=SIDE)), CLASSES, learned=parts).training(batch(), 0)
    assert (target.weight == 6).all()


def test_images_stand_beside_their_copies():
    """The first rows are evaluation's; each copy is what its draw gives in a batch without any image beside."""
    keys = {**EVERYTHING, "mixup": 0.0, "cutmix": 0.0, "mix_group": None}
    augment, ids = build(**keys, copies=2), torch.arange(4)
    draws = torch.cat([ids, ids | (1 << 32), ids | (2 << 32)])
    together = Batch(batch(ids).images.repeat(3, 1, 1, 1), ids.repeat(3) % CLASSES, ids.repeat(3), draws)
    images, target = augment.training(together, epoch=3)
    torch.testing.assert_close(images[:4], augment.evaluation(batch(ids)), rtol=0, atol=0)
    assert (target.weight[:4] == 1).all()
    for copy in (1, 2):
        rows = slice(4 * copy, 4 * copy + 4)
        alone, its_target = build(**keys).training(batch(ids)._replace(draws=draws[rows]), epoch=3)
        torch.testing.assert_close(images[rows], alone, rtol=0, atol=0)
        torch.testing.assert_close(target.mass[rows], its_target.mass, rtol=0, atol=0)
    assert (images[4:8] != images[8:]).any()


def test_a_batch_without_all_copies_of_an_image_is_refused():
    ids = torch.tensor([0, 1, 0])
    with pytest.raises(RuntimeError, match="3 samples does not hold 2 views of each image"):
        build(copies=1).training(Batch(batch(ids).images, ids, ids, ids | torch.tensor([0, 0, 1 << 32])), epoch=0)


def test_a_learned_policy_leaves_images_beside_copies_alone():
    recipe = Recipe(
        data=Data(img_size=SIDE),
        augment=Augment(hflip=0.0, copies=1),
        meta=Meta(learn=["policy"], probabilities="score", slots=3),
    )
    learned = build_parts(Setting(recipe, 100, CLASSES, SGD, torch.device("cpu")))
    augment, ids = BatchAugment(recipe, CLASSES, learned=learned), torch.arange(6)
    draws = torch.cat([ids, ids | (1 << 32)])
    together = Batch(batch(ids).images.repeat(2, 1, 1, 1), ids.repeat(2) % CLASSES, ids.repeat(2), draws)
    images, _ = augment.training(together, epoch=0)
    torch.testing.assert_close(images[:6], augment.evaluation(batch(ids)), rtol=1e-5, atol=1e-5)
    assert (images[6:] != images[:6]).flatten(1).any(1).sum() >= 4
    part = augment.part(together, 0, torch.tensor([1, 4, 7, 10]))
    torch.testing.assert_close(part.images.detach(), images[[1, 4, 7, 10]], rtol=0, atol=0)
    assert (part.log_probability[:2] == 0).all()
    assert (part.log_probability[2:] < 0).all()
