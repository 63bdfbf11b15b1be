"""Sets as the programs of their formats write them; skipped where these are not installed."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastaug.data.packed.index import PackedSet, load_packed

from .conftest import Picture, split_of

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_hugging_face_s_save_to_disk_and_parquet(tmp_path: Path, pictures: list[Picture]) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["class2", "class0", "class1"])}
    )
    splits = {}
    for split, name in (("train", "train"), ("validation", "val")):
        own = split_of(pictures, name)
        rows = {"image": [{"bytes": p.content, "path": p.name} for p in own], "label": [p.label for p in own]}
        splits[split] = datasets.Dataset.from_dict(rows, features=features)
    both = datasets.DatasetDict(splits)
    both.save_to_disk(str(tmp_path / "saved"), num_shards={"train": 3, "validation": 1})
    (tmp_path / "parquet").mkdir()
    for split, one in both.items():
        one.to_parquet(str(tmp_path / "parquet" / f"{split}-00000-of-00001.parquet"))
    both["train"].shuffle(seed=1).select(range(9)).save_to_disk(str(tmp_path / "shuffled"))
    expected = [*split_of(pictures, "train"), *split_of(pictures, "val")]
    for kind, place in (("hfds", "saved"), ("parquet", "parquet")):
        index = load_packed(PackedSet(kind, str(tmp_path / place)), threads=1)
        assert [index.encoded(i).tobytes() for i in range(len(index))] == [picture.content for picture in expected]
        assert index.classes == ("class2", "class0", "class1")
        assert [index.classes[label] for label in index.labels] == [picture.label for picture in expected]
    index = load_packed(PackedSet("hfds", str(tmp_path / "shuffled")), threads=1)
    shuffled = both["train"].shuffle(seed=1).select(range(9)).with_format("arrow")
    assert index.labels.tolist() == shuffled[:]["label"].to_pylist()
    assert [index.encoded(i).tobytes() for i in range(9)] == [row["bytes"] for row in shuffled[:]["image"].to_pylist()]


def test_images_that_hugging_face_encodes(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    images = [Image.fromarray(np.full((9, 7, 3), level, np.uint8)) for level in (10, 20, 30, 40)]
    set = datasets.Dataset.from_dict(
        {"image": images, "label": [0, 1, 1, 0]},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=2)}),
    )
    set.save_to_disk(str(tmp_path / "set"))
    index = load_packed(PackedSet("hfds", str(tmp_path / "set")), threads=1)
    levels = [np.asarray(Image.open(io.BytesIO(index.encoded(i).tobytes())))[0, 0, 0] for i in range(4)]
    assert levels == [10, 20, 30, 40]
    assert index.labels.tolist() == [0, 1, 1, 0]


def test_webdataset_s_writer(tmp_path: Path, pictures: list[Picture]) -> None:
    wds = pytest.importorskip("webdataset")
    for split in ("train", "val"):
        with wds.ShardWriter(str(tmp_path / f"{split}-%04d.tar"), maxcount=5, verbose=0) as writer:
            for row, picture in enumerate(split_of(pictures, split)):
                kind = picture.name.rpartition(".")[2]
                label = int(picture.label[-1])
                writer.write({"__key__": f"{row:06d}", kind: picture.content, "cls": label, "json": {"a": row}})
    index = load_packed(PackedSet("wds", str(tmp_path)), threads=1)
    expected = [*split_of(pictures, "train"), *split_of(pictures, "val")]
    assert [index.encoded(i).tobytes() for i in range(len(index))] == [picture.content for picture in expected]
    assert [f"class{index.classes[label]}" for label in index.labels] == [picture.label for picture in expected]
    read = wds.WebDataset(str(tmp_path / "train-{0000..0002}.tar"), shardshuffle=False).to_tuple("jpg;png", "cls")
    assert [content for content, _ in read] == [picture.content for picture in split_of(pictures, "train")]
