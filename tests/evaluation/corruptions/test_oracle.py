"""Corruptions beside other people's code; needs `imagecorruptions` (1.1.2) and OpenCV, which the project does not."""

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

from fastaug.evaluation.corruptions import FUNCTIONS, blur, digital
from fastaug.evaluation.corruptions.published import CIFAR, IMAGENET

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
Pixels = npt.NDArray[np.uint8]


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Its functions; it asks for a part of old setuptools to find its photographs, and for an old name of NumPy's."""
    resources: Any = types.ModuleType("pkg_resources")
    resources.resource_filename = lambda _, name: str(Path(name))
    monkeypatch.setitem(sys.modules, "pkg_resources", resources)
    monkeypatch.setattr(np, "float_", np.float64, raising=False)
    return pytest.importorskip("imagecorruptions.corruptions")


def picture(side: int) -> Pixels:
    """Colours with some texture."""
    y, x = np.mgrid[:side, :side] / side
    values = np.stack([np.sin(40 * x * y) ** 2, np.cos(9 * y) ** 2, (x + y > 1) * 0.9 + 0.05], -1)
    return ((values * 0.8 + 0.2 * np.random.default_rng(0).random(values.shape)) * 255).astype(np.uint8)


@pytest.mark.parametrize(
    "name", ["contrast", "pixelate", "jpeg_compression", "brightness", "zoom_blur", "defocus_blur"]
)
def test_without_draws_no_level_differs_by_more_than_one(oracle: Any, name: str) -> None:
    image, theirs = picture(224), getattr(oracle, name)
    for severity in (1, 3, 5):
        want = np.uint8(theirs(Image.fromarray(image), severity)).astype(int)
        found = FUNCTIONS[name](image, IMAGENET[name][severity - 1], np.random.default_rng(0))
        assert np.abs(found - want).max() <= (name in ("brightness", "zoom_blur", "defocus_blur"))


@pytest.mark.parametrize("angle", [-100, -45, 0, 20, 45])
def test_motion(oracle: Any, angle: float) -> None:
    image = picture(96).astype(float)
    want = oracle._motion_blur(image, 15, 8, angle)
    assert np.abs(blur.streaked(image, 15, 8, angle) - want).max() < 1e-9


@pytest.mark.parametrize(("table", "side"), [(IMAGENET, 224), (CIFAR, 32)])
def test_elastic(table: dict[str, Any], side: int) -> None:
    cv2 = pytest.importorskip("cv2")
    for parameters in table["elastic_transform"]:
        image = picture(side)
        found = digital.elastic(image, parameters, np.random.default_rng(5)).astype(int)
        want = elastic_by_opencv(cv2, image, parameters, np.random.default_rng(5).uniform)
        assert np.abs(found - want).max() <= 1


def elastic_by_opencv(cv2: Any, image: Pixels, parameters: Any, uniform: Callable[..., Any]) -> Any:
    """The published steps, with OpenCV's affine map."""
    amount, deviation, moves = parameters
    side = len(image)
    third, half = side // 3, side // 2
    points = np.float32([[half + third, half + third], [half + third, half - third], [half - third, half - third]])
    moved = np.float32(points + uniform(-moves, moves, points.shape))
    values, matrix = np.float32(image / 255), cv2.getAffineTransform(points, moved)
    values = cv2.warpAffine(values, matrix, (side, side), borderMode=cv2.BORDER_REFLECT_101)
    right, down = (gaussian_filter(uniform(-1, 1, (side, side)), deviation, truncate=3) * amount for _ in range(2))
    y, x = np.mgrid[:side, :side]
    channels = [map_coordinates(values[..., c], (y + down, x + right), order=1, mode="reflect") for c in range(3)]
    return np.uint8(np.clip(np.stack(channels, -1), 0, 1) * 255).astype(int)
