"""The size of samples.npz, as docs/label_doctor.md says."""

import io
from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator

from fastaug.data.build import DataParts
from fastaug.data.image_headers import Status
from fastaug.data.index import Folder, Index
from fastaug.data.path_table import PathTable
from fastaug.data.splits import Splits
from fastaug.evaluation.sample_file import archive
from fastaug.evaluation.training_record import TrainingRecord

MANY = 1000


def parts(images: int) -> DataParts:
    sizes, zeros = np.full(images, 9, np.int32), np.zeros(images, np.uint8)
    paths = PathTable.of([b"a/%d.jpg" % i for i in range(images)])
    labels = np.arange(images) % 2
    index = Index(Path("/data"), ("a", "b"), paths, labels, sizes, sizes, zeros + Status.OK, zeros + Folder.ALL, {})
    none = np.zeros(0, np.int64)
    return DataParts(index.classes, Splits(train=np.arange(images), meta=none, select=none, test=none), index, labels)


@pytest.mark.parametrize(("harm", "expected"), [(False, 45), (True, 49)])
def test_bytes_of_a_row(harm: bool, expected: int) -> None:
    sizes = []
    for images in (MANY, 2 * MANY):
        record = TrainingRecord(images, 2, Accelerator(), 4)
        record.knows_harm = harm
        file = archive(parts(images), record.columns(), {})
        with np.load(io.BytesIO(file)) as stored:
            assert ("harm" in stored) == harm
        sizes.append(len(file))
    assert round((sizes[1] - sizes[0]) / MANY) == expected
