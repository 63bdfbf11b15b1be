import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from fastaug.evaluation.changed_images import ChangesByEpoch
from fastaug.evaluation.occlusion import WAYS, Occlusion, Seen, occlusions
from fastaug.seeding import Key

IDS = np.arange(200)
MEAN = (1.0, 0.5, 0.0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("visible", [1.0, 0.6, 0.1])
def test_so_much_of_every_image_stays_in_view(way: str, visible: float) -> None:
    occlusion = Occlusion(way, visible, 64, (9, 9, 9))
    image = np.ones((64, 64, 3), np.uint8)
    values = occlusion.values(0, IDS)
    for value in values[:50]:
        seen = (occlusion.apply_one(image, value) == 1).all(-1)
        assert seen.mean() == pytest.approx(occlusion.share_in_view(value))
        assert seen.mean() == pytest.approx(visible, abs=0.02)
    assert (image == 1).all()
    assert len(set(values)) > 10 or visible == 1


def test_what_was_shifted_is_where_it_should_be() -> None:
    image = np.arange(16, dtype=np.uint8).reshape(4, 4, 1).repeat(3, 2)
    seen = Occlusion("shift", 0.5, 4, (255, 128, 0)).apply_one(image, (1, -2))
    assert seen[:, :, 0].tolist() == [[255] * 4, [2, 3, 255, 255], [6, 7, 255, 255], [10, 11, 255, 255]]
    assert seen[0, 0].tolist() == [255, 128, 0]
    seen = Occlusion("box", 0.5, 4, (255, 128, 0)).apply_one(image, (2, 1, 2))
    assert seen[:, :, 0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 255, 255, 11], [12, 255, 255, 15]]


def test_all_directions_come_and_an_image_keeps_its_own() -> None:
    near, far = (np.array(Occlusion("shift", v, 224, (0, 0, 0)).values(0, IDS)) for v in (0.8, 0.3))
    assert {tuple(signs) for signs in np.sign(far)} >= {(a, b) for a in (-1, 1) for b in (-1, 1)}
    assert (np.sign(near) * np.sign(far) >= 0).all()
    assert (np.abs(far) >= np.abs(near)).all()


def test_draws_are_of_seed_and_id_alone() -> None:
    """As a loader asks, in whatever batch."""
    changes = ChangesByEpoch(occlusions(4, 32, MEAN))
    for number in (1, 6):
        drawn = changes.sample(Key(3, number, 8), IDS)
        assert drawn[7:9] == changes.sample(Key(3, number, 8), IDS[7:9])
        assert drawn != changes.sample(Key(4, number, 8), IDS)


def test_points_go_down_from_the_whole_image_by_both_ways() -> None:
    points = occlusions(4, 32, MEAN)
    assert [(point.way, point.visible) for point in points] == [(way, v) for way in WAYS for v in (1, 0.75, 0.5, 0.25)]
    assert points[0].fill == (255, 128, 0)
    assert occlusions(1, 32, [0.5])[0].fill == (128, 128, 128)


def test_means_of_what_was_seen() -> None:
    seen = Seen(Occlusion("box", 0.75, 4, (0, 0, 0)), 0, torch.device("cpu"))
    seen.add(torch.tensor([1, 2]), torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]]), torch.tensor([0, 1]))
    assert seen.means(Accelerator(cpu=True)) == pytest.approx({"visibility": 0.75, "confidence": 0.625})
