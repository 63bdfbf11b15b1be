import json
import os
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image
from sklearn.datasets import load_sample_image

MakeFolder = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[1]
settings.register_profile("any speed", deadline=None)  # how long an example takes is the machine's, not the code's
settings.load_profile("any speed")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Indices and embedded sets go to a folder of the session, in child processes too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTAUG_CACHE", str(tmp_path_factory.mktemp("fastaug-cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """One thread here and in the processes that tests start: with -n 2 that fills two cores.

    Two threads of one test wait for each other in loops; where other work shares the cores that costs twenty times the
    processor time.
    """
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def no_host_sync() -> Callable[[torch.device], AbstractContextManager[None]]:
    """Context manager of a device: every wait of the host for it is an error."""

    @contextmanager
    def never(device: torch.device) -> Iterator[None]:
        if device.type == "cpu":
            yield
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is a prototype
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return never


@pytest.fixture(autouse=True)
def _same_environment() -> Iterator[None]:
    """What Accelerate writes into the environment of a run with processes ends with the test."""
    before = dict(os.environ)
    yield
    if dict(os.environ) != before:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(autouse=True, scope="module")
def _fresh_accelerator() -> Iterator[None]:
    """What Accelerate keeps for the whole process ends with a file's tests: the next file may want other precision."""
    yield
    if (state := sys.modules.get("accelerate.state")) is not None:
        for kept in (state.AcceleratorState, state.GradientState, state.PartialState):
            kept._reset_state()


@pytest.fixture(scope="session")
def forking_server() -> Iterator[subprocess.Popen[str]]:
    """A process that has imported fastaug and forks those that `in_processes` starts."""
    command, env = [sys.executable, str(ROOT / "tests" / "forking_server.py")], os.environ | {"PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=env, start_new_session=True, **pipes) as server:
        yield server
        os.killpg(server.pid, signal.SIGKILL)  # with what a test may have left running


@pytest.fixture(scope="session")
def in_processes(forking_server: subprocess.Popen[str]) -> Callable[..., str]:
    """in_processes(count, script, ..., code=0): runs it in so many processes that find each other; what the first says.

    `script` can be "-c", with code behind it; `code` is the exit code that all are to have. The processes find each
    other by the variables that torchrun sets.
    """

    def start(count: int, *words: object, code: int = 0) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **job}
        ranks = [{**env, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
        assert forking_server.stdin is not None
        assert forking_server.stdout is not None
        print(json.dumps({"argv": [*map(str, words)], "environments": ranks}), file=forking_server.stdin, flush=True)
        ended = json.loads(forking_server.stdout.readline())
        assert ended["codes"] == [code] * count, "\n".join(ended["said"])[-3000:]
        return ended["said"][0]

    return start


@pytest.fixture(scope="session")
def photos() -> list[np.ndarray]:
    """scikit-learn's two photographs, uint8 [427, 640, 3]."""
    return [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]


@pytest.fixture
def jpeg_folder(tmp_path: Path, jpegs: MakeFolder) -> MakeFolder:
    """jpeg_folder(classes, images, sizes, splits, kind): class folders of crops of the photographs, below tmp_path.

    `images` of each class and split; sides uniform in `sizes`; splits ("",) for one folder of classes.
    """
    return partial(jpegs, tmp_path / "images")


@pytest.fixture(scope="session")
def jpegs(photos: list[np.ndarray]) -> MakeFolder:
    """jpegs(root, ...): the same in the folder `root`, for fixtures of more than one test."""

    def make(
        root: Path,
        classes: int = 2,
        images: int = 8,
        sizes: tuple[int, int] = (40, 120),
        splits: tuple[str, ...] = ("",),
        kind: str = "jpg",
    ) -> Path:
        draw = np.random.default_rng(0)
        for split in splits:
            for label in range(classes):
                folder = root / split / f"class{label}"
                folder.mkdir(parents=True)
                for number in range(images):
                    height, width = draw.integers(*sizes, 2, endpoint=True)
                    top, left = draw.integers(0, 427 - height), draw.integers(0, 640 - width)
                    crop = photos[label % 2][top : top + height, left : left + width]
                    options = {"quality": 90} if kind == "jpg" else {}
                    Image.fromarray(crop).save(folder / f"{number:03d}.{kind}", **options)
        return root

    return make


@pytest.fixture(scope="session")
def train_tiny(tmp_path_factory: pytest.TempPathFactory, jpegs: MakeFolder) -> Callable[..., Path]:
    """train_tiny(key=value, ...): the run folder of timm's smallest network after 2 epochs on 12 classes.

    Photographs lie beside it in images/{train,val}; classes are class0, class1, class10, class11, class2, ...
    """
    from accelerate.state import AcceleratorState, GradientState, PartialState

    from fastaug.recipe.reading import read_recipe
    from fastaug.training.worker import run

    def train(**keys: object) -> Path:
        folder = tmp_path_factory.mktemp("tiny")
        jpegs(folder / "images", 12, 4, splits=("train", "val"))
        (folder / "recipe.yaml").write_text(TINY)
        words = [f"{name.replace('__', '.')}={value}" for name, value in keys.items()]
        recipe = read_recipe(
            folder / "recipe.yaml", [f"data.root={folder / 'images'}", f"run.dir={folder / 'run'}", *words]
        )
        for kept in (AcceleratorState, GradientState, PartialState):  # of another run, maybe of another precision
            kept._reset_state()
        assert run(recipe) == 0
        return folder / "run"

    return train


@pytest.fixture(scope="session")
def tiny_run(train_tiny: Callable[..., Path]) -> Path:
    """The run folder of `train_tiny` as it is, with a moving average and a best checkpoint; tests only read it."""
    return train_tiny()


@pytest.fixture(scope="session")
def odd_run(train_tiny: Callable[..., Path]) -> Path:
    """The same with a stem for small images and an output for the "other" class, after one epoch; only read."""
    return train_tiny(
        model__stem="small", model__ema="false", augment__other_class="true", augment__shift=0.3, train__epochs=1
    )


TINY = """
data: {img_size: 32, crop_pct: 0.8, threads: 1, select_fraction: 0.25}
model: {name: test_resnet, ema: true, ema_decay: 0.5}
optim: {opt: adamw, lr: 2e-3, sched: constant}
train: {epochs: 2, batch_size: 12}
eval: {batch_size: 7}
"""
