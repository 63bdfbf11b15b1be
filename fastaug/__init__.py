"""fastaug: image classifiers trained with soft, mixed and learned augmentation at full speed.

From Python: `fastaug.train`, `fastaug.evaluate` (docs/python.md), `fastaug.load` (docs/using_models.md),
`fastaug.loader` (docs/loader.md). They are imported when they are first asked for, so that `import fastaug` costs no
torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastaug import errors as errors

if TYPE_CHECKING:
    from fastaug.api import Result as Result
    from fastaug.api import evaluate as evaluate
    from fastaug.api import train as train
    from fastaug.inference.saved_model import load as load
    from fastaug.training.standalone_loader import loader as loader

__version__ = "0.1.0"
_PLACES = {  # what is offered, and where
    "Result": "fastaug.api",
    "evaluate": "fastaug.api",
    "load": "fastaug.inference.saved_model",
    "loader": "fastaug.training.standalone_loader",
    "train": "fastaug.api",
}


def __getattr__(name: str) -> Any:
    """The function `name` of its module (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module 'fastaug' has no attribute {name!r}; it offers {', '.join(sorted(_PLACES))}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
