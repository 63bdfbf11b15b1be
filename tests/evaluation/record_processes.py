"""Run under torchrun: a record fed with the share of this process of drawn batches; the main one saves its state."""

import sys

import torch
from accelerate import Accelerator

from fastaug.data.sampler import piece_bounds
from fastaug.evaluation.training_record import TrainingRecord
from tests.evaluation.test_training_record import CLASSES, EPOCHS, SIZE, batches_of, fed


def main() -> None:
    accelerator = Accelerator(cpu=True)
    record = TrainingRecord(SIZE, CLASSES, accelerator, largest=8)
    for epoch in range(EPOCHS):
        for whole in batches_of(epoch):
            bounds = piece_bounds(len(whole[0]), accelerator.num_processes)
            rank = accelerator.process_index
            fed(record, [part[bounds[rank] : bounds[rank + 1]] for part in whole], epoch)
    state = record.state()
    if accelerator.is_main_process:
        torch.save(state, sys.argv[1])
    accelerator.end_training()


if __name__ == "__main__":
    main()
