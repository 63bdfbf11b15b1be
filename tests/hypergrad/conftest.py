import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent))  # `tiny_nets`, as tests are no package


@pytest.fixture(autouse=True, scope="module")
def _one_thread(_few_threads: None) -> Iterator[None]:
    """Tiny networks are faster with one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
