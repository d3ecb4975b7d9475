"""Object detectors that look twice: a first look says where, a second look there decides.

import relook
look = relook.load("mine.safetensors")
for result in look(["street.jpg"]):
    print(result.names, result.boxes)
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relook.api import create_model, entry, evaluate, list_models, load, load_published, train
    from relook.archives import CheckpointError
    from relook.detector import Detector
    from relook.predictor import Predictor
    from relook.results.result import Result
    from relook.types import Detections, ImageDetections, Targets
    from relook.weights.loading import LoadReport

__version__ = version("relook")

__all__ = [
    "CheckpointError",
    "Detections",
    "Detector",
    "ImageDetections",
    "LoadReport",
    "Predictor",
    "Result",
    "Targets",
    "__version__",
    "create_model",
    "entry",
    "evaluate",
    "list_models",
    "load",
    "load_published",
    "train",
]

_HOMES = {  # loaded when first asked for, so that `import relook` costs nothing
    "CheckpointError": "relook.weights.reading.pickled",
    "Detections": "relook.types",
    "Detector": "relook.detector",
    "ImageDetections": "relook.types",
    "LoadReport": "relook.weights.loading",
    "Predictor": "relook.predictor",
    "Result": "relook.results.result",
    "Targets": "relook.types",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'relook' has no attribute {name!r}")
    found = getattr(import_module(_HOMES.get(name, "relook.api")), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
