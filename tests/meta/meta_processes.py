"""Run under torchrun: meta steps in float64 on a GroupNorm network; the main process prints their hypergradients."""

import json
import sys

import torch

import fastaug.training.build as assembly
from fastaug.console import Console
from fastaug.distributed import build_accelerator
from fastaug.meta.step import MetaStep
from fastaug.recipe.reading import read_recipe
from fastaug.training.loop import train_step
from fastaug.training.run_folder import RunFolder


def doubled(build):
    """`build` with a network in float64 that takes float32 images."""

    def built(*args):
        network = build(*args).double()
        network.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
        return network

    return built


def main() -> None:
    recipe = read_recipe(sys.argv[1], sys.argv[2:])
    accelerator = build_accelerator(recipe)
    torch.set_default_dtype(torch.float64)
    assembly.build_network = doubled(assembly.build_network)
    trainer = assembly.assemble(recipe, accelerator, RunFolder(recipe.run.dir), Console(False))
    trainer.progress.step = 1  # update 0 logs pictures
    found, learned = [], trainer.meta.learned
    before = {name: value.clone() for name, value in learned.state_dict().items() if name.endswith("table.weight")}
    move = MetaStep.move

    def keep(self, gradients, ids, step):
        move(self, gradients, ids, step)
        shared = [gradients[name] for name in self.learned.shared()]
        found.append([value.item() for gradient in shared for value in gradient.flatten()])

    MetaStep.move = keep
    batches = trainer.loader.batches(trainer.order.requests(1, 4))
    for _ in range(3):
        train_step(trainer, batches)
    if accelerator.is_main_process:
        tables = {name: (learned.state_dict()[name] - start).tolist() for name, start in before.items()}
        print("FOUND " + json.dumps({"shared": found, **tables}))
    accelerator.end_training()


if __name__ == "__main__":
    main()
