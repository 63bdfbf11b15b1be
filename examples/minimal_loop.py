"""fastaug's loader, fused op and soft targets in a plain PyTorch loop, without its trainer.

python examples/minimal_loop.py embedded:mnist5k --side 28 --epochs 5
python examples/minimal_loop.py /data/images --side 224 --model resnet50     # a folder of class folders
"""

import argparse

import timm
import torch

from fastaug.data.build import DataParts, build_loader, find_index, find_root
from fastaug.data.index import Folder
from fastaug.data.loaders.base import Crop, Loading
from fastaug.data.sampler import Order, evaluation_requests
from fastaug.data.splits import make_splits
from fastaug.ops.crop_mix import Sampling, crop_mix, identity_params, sample_crop_mix
from fastaug.seeding import Key, Stream
from fastaug.targets import soft_cross_entropy


def train(root: str, *, model: str, side: int, epochs: int, batch_size: int, lr: float, seed: int = 0) -> float:
    """Trains, prints the mean loss of every epoch and returns the accuracy on the test split.

    That is the root's own (a val/ or test/ folder), or a fifth of every class.
    """
    # ---- data: every image has a stable id; order, crops and all draws are functions of (seed, epoch, id) ----
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    index = find_index(find_root(root, progress=True), exif="ignore", progress=True)
    test = 0 if (index.folders == Folder.TEST).any() else 0.2
    parts = DataParts(index.classes, make_splits(index, seed=seed, test=test), index)
    loading = Loading(device, largest_batch=batch_size, threads=2)
    loader = build_loader(parts, parts.splits.train, Crop("rrc", side, seed=seed, scale=(0.5, 1.0)), loading)
    held_out = build_loader(parts, parts.splits.test, Crop("center", side), loading)
    order = Order(ids=parts.splits.train, seed=seed, batch_size=batch_size)

    # ---- network: anything that takes [N, 3, S, S] ----
    torch.manual_seed(seed)
    classes = len(index.classes)
    network = timm.create_model(model, num_classes=classes).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    sampling = Sampling(
        sigma=0.15, hflip=0.0, cutmix=1.0, mixup_prob=0.5
    )  # soft crop, and CutMix in half of the updates

    # ---- training ----
    total, steps = torch.zeros((), device=device), order.steps_per_epoch
    for step, batch in enumerate(loader.batches(order.requests(0, epochs * steps))):
        epoch = step // steps
        params = sample_crop_mix(Key(seed, epoch, Stream.MIX), batch.draws, (side, side), sampling)
        images, target = crop_mix(batch.images, batch.labels, params, classes=classes)
        loss = soft_cross_entropy(network(images), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        total += loss.detach()
        if (step + 1) % steps == 0:
            print(f"epoch {epoch + 1}  loss {total.item() / steps:.4f}")
            total.zero_()

    # ---- evaluation: every image once ----
    network.eval()
    right = 0
    with torch.no_grad():
        for batch in held_out.batches(evaluation_requests(parts.splits.test, batch_size, world=1, rank=0)):
            params = identity_params(len(batch.ids), torch.zeros(3))
            images, _ = crop_mix(batch.images, batch.labels, params, classes=classes)
            right += int((network(images).argmax(1) == batch.labels).sum())
    return right / len(parts.splits.test)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="folder of class folders, or embedded:mnist5k")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--side", type=int, default=224, help="pixels")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.05)
    print(f"accuracy {train(**vars(parser.parse_args())):.4f}")
