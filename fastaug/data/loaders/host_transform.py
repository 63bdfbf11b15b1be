"""Host transforms in a loader's threads: what is done to training images between their crop and their upload."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from fastaug.data.loaders.base import Loading, to_device
from fastaug.data.loaders.cpu_resize import Finish
from fastaug.data.loaders.prefetch import ahead
from fastaug.data.sampler import Ids, Request
from fastaug.seeding import Key, Stream


def drawn(loading: Loading, seed: int, request: Request) -> Finish | None:
    """The function (position in the request, image) -> image under the transform, for any thread; None without one."""
    transform, copies = loading.transform, request.copies
    if transform is None or request.epoch < loading.first_epoch:
        return None
    apply_one = transform.apply_one
    values = transform.sample(Key(seed, request.epoch, Stream.POLICY), request.draws())
    if loading.spare and copies is not None:
        return lambda row, image: apply_one(image, values[row]) if copies[row] else image
    return lambda row, image: apply_one(image, values[row])


def transformed_ahead(
    bank: Tensor, places: Callable[[Ids], Ids], requests: Iterable[Request], seed: int, loading: Loading
) -> Iterator[tuple[Request, Tensor]]:
    """Prefetching iterator over requests with their images on the device: gathered from `bank`, transformed, uploaded.

    `bank` uint8 [M, S, S, 3] lies on the host, `places` tells which of its images ids stand for. As many batches are in
    preparation while the caller works as `prefetch` or `threads` say, whichever is more, on `threads` threads.
    """

    def made(request: Request) -> tuple[Request, Tensor]:
        images, after = bank.numpy()[places(request.ids)], drawn(loading, seed, request)
        if after is not None:
            for row, image in enumerate(images):
                images[row] = after(row, image)
        batch = torch.from_numpy(images)
        return request, batch.pin_memory() if loading.device.type == "cuda" else batch

    for request, images in ahead(made, requests, max(loading.prefetch, loading.threads), loading.threads):
        yield request, to_device(images, loading.device)
