"""The statistics of training images: against exact averages, over processes, kills and mixed samples."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from fastaug.batch import Batch
from fastaug.evaluation.training_record import PENDING, TrainingRecord
from fastaug.seeding import copies_of
from fastaug.targets import SoftTarget, hard_target

SIZE, CLASSES, EPOCHS, BATCH = 60, 7, 12, 8


def labels_of(ids: Tensor) -> Tensor:
    return ids % CLASSES


def logits_of(ids: Tensor, epoch: int) -> Tensor:
    """A network that learns: noise at first, then the label, of every fifth image another class."""
    draw = torch.Generator().manual_seed(epoch)
    noise = torch.randn(SIZE, CLASSES, generator=draw)
    looks = torch.where(torch.arange(SIZE) % 5 == 0, (torch.arange(SIZE) + 2) % CLASSES, torch.arange(SIZE) % CLASSES)
    noise[torch.arange(SIZE), looks] += 0.4 * epoch
    return noise[ids]


def batches_of(epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Ids, labels and logits of every batch of an epoch."""
    order = torch.randperm(SIZE, generator=torch.Generator().manual_seed(99 + epoch))
    for ids in order.split(BATCH):
        yield ids, labels_of(ids), logits_of(ids, epoch)


def batch_of(ids: Tensor, labels: Tensor | None = None, draws: Tensor | None = None) -> Batch:
    labels = labels_of(ids) if labels is None else labels
    return Batch(torch.zeros(len(ids), 2, 2, 3, dtype=torch.uint8), labels, ids, ids if draws is None else draws)


def fed(record: TrainingRecord, parts: list[Tensor], epoch: int) -> None:
    ids, labels, logits = parts
    record.begin(epoch)
    record.add(batch_of(ids, labels), logits, hard_target(labels))
    if len(ids):
        record.add_harm(torch.arange(1), (1 + ids[:1]).float() / 64)  # sums of such numbers are exact
    else:
        record.add_harm(torch.arange(0), torch.zeros(0))


def new(size: int = SIZE, classes: int = CLASSES, largest: int = BATCH) -> TrainingRecord:
    return TrainingRecord(size, classes, Accelerator(cpu=True), largest)


def trained(epochs: int = EPOCHS) -> TrainingRecord:
    record = new()
    for epoch in range(epochs):
        for parts in batches_of(epoch):
            fed(record, list(parts), epoch)
    return record


def equal(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(
        torch.equal(one[name], two[name]) if isinstance(one[name], Tensor) else one[name] == two[name] for name in one
    )


def test_an_image_costs_32_bytes():
    state = new(size=1000).state()
    tensors = [value for value in state.values() if isinstance(value, Tensor)]
    assert sum(value.numel() * value.element_size() for value in tensors) == 32 * 1000


def test_statistics_are_the_exact_means():
    record, every = trained(), torch.arange(SIZE)
    found, labels = record.columns(), labels_of(every)
    logs = torch.stack([logits_of(every, epoch).log_softmax(1) for epoch in range(EPOCHS)])
    given = logs.gather(2, labels.expand(EPOCHS, -1)[..., None])[..., 0]
    others = logs.scatter(2, labels.expand(EPOCHS, -1)[..., None], -torch.inf)
    assert (found["visits"] == EPOCHS).all()
    torch.testing.assert_close(found["probability"], given.exp().mean(0))
    torch.testing.assert_close(found["cross_entropy"], -given.mean(0))
    torch.testing.assert_close(found["margin"], (given - others.amax(2)).mean(0))
    right = given > others.amax(2)
    torch.testing.assert_close(found["forgotten"], (right[:-1] & ~right[1:]).sum(0).int())
    assert found["harm"].sum() > 0


def test_the_other_class_is_the_likeliest_where_it_matters_and_its_probability_never_too_high():
    found, every = trained(), torch.arange(SIZE)
    found = found.columns()
    mean = torch.stack([logits_of(every, epoch).softmax(1) for epoch in range(EPOCHS)]).mean(0)
    mean.scatter_(1, labels_of(every)[:, None], 0)
    chosen = mean.gather(1, found["other"].long()[:, None])[:, 0]
    assert (found["other_probability"] <= chosen + 1e-6).all()
    wrong = every % 5 == 0
    assert torch.equal(found["other"][wrong].long(), mean.argmax(1)[wrong])
    assert (chosen - found["other_probability"])[wrong].max() < 0.15  # what it had before it became a candidate
    assert (mean.amax(1) - chosen).mean() < 0.01


def test_a_class_with_most_of_the_probability_is_a_candidate_whatever_the_others_do():
    record = new(size=1, classes=50, largest=1)
    logits = torch.full((1, 50), -20.0)
    for epoch in range(60):
        shown = logits.clone()
        shown[0, 1 + epoch % 40 if epoch % 5 < 2 else 49] = 5  # ever another one twice, then 49 three times
        record.begin(epoch)
        record.add(batch_of(torch.tensor([0]), torch.tensor([0])), shown, hard_target(torch.tensor([0])))
    found = record.columns()
    assert found["other"].item() == 49
    assert 0.5 < found["other_probability"].item() < 0.6


def test_a_record_continues_bit_for_bit():
    whole, half = trained(), trained(EPOCHS // 2)
    again = new()
    again.restore(half.state())
    for epoch in range(EPOCHS // 2, EPOCHS):
        for parts in batches_of(epoch):
            fed(again, list(parts), epoch)
            again.restore(again.state())  # a kill behind every update
    assert equal(whole.state(), again.state())


def test_a_record_continues_where_images_to_evaluate_have_come_or_gone():
    state = trained().state()
    for size in (SIZE - 3, SIZE + 4):
        record = new(size=size)
        record.restore(state)
        kept = record.columns()
        assert torch.equal(kept["visits"][: SIZE - 3], torch.full((SIZE - 3,), EPOCHS, dtype=torch.int32))
        assert not kept["visits"][SIZE:].any()
        assert kept["probability"][SIZE:].isnan().all()


def test_two_processes_keep_what_one_does_bit_for_bit(tmp_path, in_processes):
    in_processes(2, Path(__file__).with_name("record_processes.py"), tmp_path / "two.pt")
    two = torch.load(tmp_path / "two.pt")
    one = trained().state()
    harm = [state["sums"][3].clone() for state in (one, two)]
    for state in (one, two):
        state["sums"][3] = 0
    assert equal(one, two)
    assert (harm[1] >= harm[0]).all()  # here both processes have told of one sample each


def test_a_mixed_sample_counts_for_the_image_that_is_most_of_it_and_without_its_partner_s_class():
    ids = torch.arange(4)
    labels = torch.tensor([0, 1, 2, 3])
    logits = torch.tensor([[2.0, 9.0, 1.0, 0.0]] * 4)
    partner = torch.tensor([1, 0, 3, 3])
    mass = torch.tensor([[0.7, 0.3], [0.4, 0.6], [0.5, 0.5], [0.2, 0.6]])
    target = SoftTarget(torch.stack([labels, partner], 1), mass, torch.ones(4))
    record = new(size=4, classes=4, largest=4)
    record.add(batch_of(ids, labels), logits, target)
    found = record.columns()
    assert found["visits"].tolist() == [1, 0, 1, 1]  # the last one is of one class alone
    assert found["other"].tolist() == [2, -1, 1, 1]
    assert found["margin"][0].item() == pytest.approx(1)  # of class 0 against 2: class 1 is the partner's
    without = torch.tensor([2.0, 1.0, 0.0]).softmax(0)
    assert found["probability"][0].item() == pytest.approx(without[0].item())


def test_of_the_copies_of_an_image_the_first_counts():
    ids = torch.tensor([0, 1, 0, 1])
    draws = torch.from_numpy(copies_of(ids.numpy(), torch.tensor([0, 0, 1, 1]).numpy()))
    logits = torch.randn(4, 3)
    record = new(size=2, classes=3, largest=4)
    record.add(batch_of(ids, ids, draws), logits, hard_target(ids))
    found = record.columns()
    assert found["visits"].tolist() == [1, 1]
    torch.testing.assert_close(found["probability"], logits[:2].softmax(1).gather(1, ids[:2, None])[:, 0])


def test_what_is_not_finite_and_blank_samples_do_not_count():
    ids = torch.arange(2)
    logits = torch.tensor([[1.0, 0.0], [torch.nan, 0.0], [0.0, 0.0]])
    target = hard_target(torch.tensor([0, 1, 0]))
    record = new(size=2, classes=2, largest=3)
    record.add(batch_of(ids), logits, target)
    record.add_harm(None, torch.tensor([0.5, 0.25, 9.0]))
    assert record.columns()["visits"].tolist() == [1, 0]
    assert record.columns()["harm"].tolist() == [0.5, 0.0]


def test_rows_are_written_before_they_become_many():
    record = new()
    for _ in range(PENDING + 1):
        record.begin(0)
        record.add(batch_of(torch.arange(2)), torch.zeros(2, CLASSES), hard_target(torch.arange(2)))
        assert len(record._rows) <= PENDING
