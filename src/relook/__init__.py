"""Object detectors that look twice: a first look says where, a second look there decides.

import relook
look = relook.load("mine.safetensors")
for found in look(["street.jpg"]):
    print(found.names, found.boxes)
"""

import sys
from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relook.api import create_model, entry, list_models, load, load_published
    from relook.api import train as train
    from relook.detector import Detector
    from relook.predictor import Found, Predictor
    from relook.types import Detections, ImageDetections, Targets
    from relook.zoo.pickled import CheckpointError
    from relook.zoo.weights import LoadReport

__version__ = version("relook")

__all__ = [
    "CheckpointError",
    "Detections",
    "Detector",
    "Found",
    "ImageDetections",
    "LoadReport",
    "Predictor",
    "Targets",
    "__version__",
    "create_model",
    "entry",
    "list_models",
    "load",
    "load_published",
    "train",
]

_HOMES = {  # loaded when first asked for, so that `import relook` costs nothing
    "CheckpointError": "relook.zoo.pickled",
    "Detections": "relook.types",
    "Detector": "relook.detector",
    "Found": "relook.predictor",
    "ImageDetections": "relook.types",
    "LoadReport": "relook.zoo.weights",
    "Predictor": "relook.predictor",
    "Targets": "relook.types",
}


class _Train(ModuleType):
    """`relook.train` is the room of that name and, called, the function `relook.api.train`."""

    def __call__(self, **arguments: Any) -> Any:
        return import_module("relook.api").train(**arguments)


import_module("relook.train")  # an empty file: its contents are loaded when they are asked for
sys.modules["relook.train"].__class__ = _Train


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'relook' has no attribute {name!r}")
    found = getattr(import_module(_HOMES.get(name, "relook.api")), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
