"""timm's arguments of data and preprocessing: where images are, and how they reach the network."""

from typing import Any

from fastaug.errors import RecipeError
from fastaug.recipe.auto_values import preprocessing
from fastaug.recipe.timm_script.arguments import SCRIPT
from fastaug.recipe.timm_script.conversion import Conversion

SETS = {  # torchvision keeps sets that have MNIST's file names in folders of their own
    **{"torch/cifar10": "cifar10:{}", "torch/cifar100": "cifar100:{}", "torch/mnist": "mnist:{}"},
    **{"torch/fashion_mnist": "mnist:{}/FashionMNIST", "torch/kmnist": "mnist:{}/KMNIST"},
}
FOLDER_SETS = ("", "folder", "image_folder", "torch/image_folder", "torch/imagenet")
PREFIXES = {"hfds/": "hfds:", "hfids/": "hfds:", "wds/": "wds:", "tfds/": "tfrecord:"}
WRITE_FIRST = {  # how what timm fetches by name becomes a folder
    "hfds:": "save_to_disk of Hugging Face's datasets writes it",
    "wds:": "the folder of its tars",
    "tfrecord:": "the folder of its .tfrecord files",
}
TRAIN_NAMES, VAL_NAMES = ("train", "training"), ("validation", "val", "valid", "test")
IMAGENET = {"img_size": 224, "crop_pct": 0.875, "interpolation": "bilinear"}
IMAGENET |= {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def root(c: Conversion) -> None:
    folder = c["data_dir"] or c["data"]
    name = c["dataset"]
    if not folder and not name.startswith(tuple(PREFIXES)):
        raise RecipeError(["--data-dir: no folder of images is given; add --data-dir FOLDER"])
    owner, other = ("data_dir", "data") if c["data_dir"] else ("data", "data_dir")
    root, note, lacks = _set_of(name, folder)
    c.sets(owner, data__root=root)
    c.idle(other, "--data-dir says it" if c.given(other) else "not given")
    if lacks:
        c.lacks("dataset", note)
    else:
        c.idle("dataset", note)


def _set_of(name: str, folder: str | None) -> tuple[str, str, bool]:
    """data.root for timm's --dataset and folder, what to say of it, and whether something is missing."""
    lower = name.lower()
    if lower in FOLDER_SETS:
        return str(folder), "a folder of class folders is found by itself", False
    if lower in SETS:
        return SETS[lower].format(folder), f"data.root: {SETS[lower].format('FOLDER')}", False
    for prefix, ours in PREFIXES.items():
        if lower.startswith(prefix):
            place = folder or name[len(prefix) :].replace("/", "_")
            text = f"data.root: {ours}FOLDER reads files on disk; {WRITE_FIRST[ours]}, nothing is downloaded"
            return f"{ours}{place}", text, True
    return str(folder), "no such set is known; data.root is taken for a folder of class folders", True


def keys_of_records(c: Conversion) -> None:
    """Where a record of a packed set has its image and label; timm does not read them for folders."""
    packed = str(c.keys["data.root"]).startswith(tuple(PREFIXES.values()))
    for name in ("input_key", "target_key"):
        if packed and c[name]:
            c.sets(name, **{f"data__{name}": c[name]})
        else:
            c.idle(name, "not given" if packed else "of sets in tars, Arrow files or TFRecords")


def splits(c: Conversion) -> None:
    for name, known in (("train_split", TRAIN_NAMES), ("val_split", VAL_NAMES)):
        value = c[name]
        if value in known:
            c.idle(name, "found by its name")
        elif not value:
            c.lacks(name, "held-out images are evaluated where there are any")
        else:
            c.lacks(name, f"splits are found by their names; rename {value!r} to {known[0]}")


def input_of_network(c: Conversion) -> None:
    """Size, channels, normalisation, interpolation: what is given, else as the network's weights were trained."""
    known, source = known_preprocessing(c["model"], "--model")
    channels = c["in_chans"] or (c["input_size"] or [3])[0]
    size = c["input_size"]
    for name, here in (("in_chans", c["in_chans"] is not None), ("input_size", size is not None)):
        if here:
            c.sets(name, data__channels=channels)
        else:
            c.idle(name, "three channels" if name == "in_chans" else "not given")
    square = size is None or size[1] == size[2]
    side = asked_side(c)
    _put_or_lack(c, "img_size", side or known["img_size"], source if not side else "")
    if not square:
        c.rows.pop("input_size")
        c.lacks("input_size", f"images are square; data.img_size: {c.keys.get('data.img_size', 224)}")
    for name in ("crop_pct", "interpolation"):
        _put_or_lack(c, name, c[name] or known[name], "" if c[name] else source)
    for name in ("mean", "std"):
        _put_or_lack(c, name, _for_channels(c[name] or known[name], channels), "" if c[name] else source)
    evaluated = c.keys.get("data.interpolation", IMAGENET["interpolation"])
    wanted = c["train_interpolation"]
    if c["no_aug"] or wanted in ("", evaluated):
        c.idle("train_interpolation", "data.interpolation")
    else:
        drawn = "bilinear or bicubic, drawn for each image" if wanted == "random" else wanted
        c.lacks("train_interpolation", f"timm trains with {drawn}; here with evaluation's, {evaluated}")


def asked_side(c: Conversion) -> int | None:
    """The side of square images that is asked for, if any."""
    size, of_network = c["input_size"], c["model_kwargs"].get("img_size")
    side: int | None = c["img_size"] or (size[1] if size is not None and size[1] == size[2] else None)
    return side or (of_network if isinstance(of_network, int) else None)


def known_preprocessing(name: str, flag: str) -> tuple[dict[str, Any], str]:
    """How images reach the network that `flag` names, and where that is from; RecipeError where timm has none such."""
    try:
        found = preprocessing(name)
    except RecipeError:
        if ":" not in name:
            known = f"{flag}: {name} is no network of timm's, and {SCRIPT} does not train it either"
            after = "then set model.name, data.mean, std, img_size, crop_pct and interpolation in the recipe"
            raise RecipeError([f"{known}; name one of timm's, {after}"]) from None
        return IMAGENET, f"ImageNet's: of {name} it is known when it is fetched; check"
    return found.values, f"of {found.source}"


def _put_or_lack(c: Conversion, name: str, value: Any, note: str) -> None:
    """A key of `data`, or its default where the value is none that this loader has."""
    default = IMAGENET[name]
    if (name == "img_size" and isinstance(value, list)) or (
        name == "interpolation" and value not in ("bilinear", "bicubic")
    ):
        c.lacks(name, f"{value} is not available; {default} is used", **{f"data__{name}": default})
    else:
        c.sets(name, note, **{f"data__{name}": value})


def _for_channels(values: list[float], channels: int) -> list[float]:
    """A number for each channel, as timm spreads them: one for all, or their mean where the count is another."""
    if len(values) == channels:
        return [float(value) for value in values]
    return [sum(values) / len(values)] * channels
