"""fastaug: image classifiers trained with soft, mixed and learned augmentation at full speed.

From Python: `fastaug.load` (docs/using_models.md). It is imported when it is first asked for, so that `import fastaug`
costs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastaug.inference.saved_model import load as load

__version__ = "0.1.0"
_PLACES = {"load": "fastaug.inference.saved_model"}  # what is offered, and where


def __getattr__(name: str) -> Any:
    """The function `name` of its module (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module 'fastaug' has no attribute {name!r}; it offers {', '.join(sorted(_PLACES))}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
