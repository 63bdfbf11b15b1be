"""The plain step: a second optimizer step in an update, on the un-augmented batch (bilevel_augment's clf_loss)."""

import torch

from fastaug.batch import Batch
from fastaug.nets.recomputing import backward_pass
from fastaug.seeding import Key, Stream, scalar_seed
from fastaug.training.build import Trainer


def plain_step(trainer: Trainer, batch: Batch, images: int) -> None:
    """One more step of the optimizer, on the images of `batch` as they were decoded, `images` of them in all processes.

    It comes after the meta step, which differentiates the augmented step alone, and after the moving average, which
    takes the weights that the meta step sees. Its loss is not in the log's.
    """
    accelerator, step = trainer.accelerator, trainer.progress.step
    inputs, target = trainer.augment.unaugmented(batch)
    key = Key(trainer.recipe.run.seed, step // trainer.order.steps_per_epoch, Stream.PLAIN_STEP)
    torch.manual_seed(scalar_seed(key, step * accelerator.num_processes + trainer.order.rank))
    loss = trainer.objective(trainer.model(inputs), target) / images
    with backward_pass(trainer.network, recomputes=trainer.recipe.model.grad_checkpointing):
        accelerator.backward(loss * accelerator.num_processes)  # as in the loop
    trainer.freezing.end(step)
    norm = trainer.clip(accelerator, trainer.model)
    checked = torch.stack([loss.detach(), norm.to(loss)]) if accelerator.scaler is None else loss.detach()
    trainer.finite.ask(checked, "the loss of the plain step or its gradient", step)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
