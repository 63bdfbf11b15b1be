from collections.abc import Iterable, Iterator

import numpy as np
import torch

from fastaug.batch import Batch
from fastaug.data.loaders.resizing import ResizingLoader
from fastaug.data.sampler import Request

ALIVE = []


class OfOneSize:
    """Blank batches of one size; image 7 is damaged."""

    def __init__(self, side: int) -> None:
        self.side, self.skipped = side, dict[int, str]()
        ALIVE.append(side)

    def __del__(self) -> None:
        ALIVE.remove(self.side)

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        for request in requests:
            assert [self.side] == ALIVE
            if 7 in request.ids:
                self.skipped[7] = f"at {self.side}"
            ids = torch.from_numpy(request.ids)
            yield Batch(torch.zeros(len(ids), self.side, self.side, 3, dtype=torch.uint8), ids, ids, ids)


def test_each_epoch_has_its_size_and_one_loader_lives_at_a_time() -> None:
    sides = {0: 8, 1: 8, 2: 16, 3: 8}
    loader = ResizingLoader(OfOneSize, sides.__getitem__)
    ids = [np.array([1, 2]), np.array([3, 7])]
    requests = [Request(epoch, part) for epoch in range(1, 4) for part in ids]
    batches = list(loader.batches(iter(requests)))
    assert [batch.images.shape[1] for batch in batches] == [8, 8, 16, 16, 8, 8]
    assert [batch.ids.tolist() for batch in batches] == [[1, 2], [3, 7]] * 3
    assert list(loader.skipped) == [7]
