"""Options by the names that people know from other programs."""

from collections.abc import Sequence
from typing import Final

_ELSEWHERE: Final[dict[str, tuple[str, ...]]] = {  # what other programs call it -> what it is here
    "conf": ("score",),
    "conf-thres": ("score",),
    "score-thr": ("score",),
    "threshold": ("score",),
    "imgsz": ("size",),
    "img-size": ("size",),
    "image-size": ("size",),
    "img": ("size",),
    "source": ("IMAGES",),
    "input": ("IMAGES", "PATH"),
    "project": ("out",),
    "name": ("out",),
    "output": ("out",),
    "output-dir": ("out",),
    "work-dir": ("out",),
    "batch-size": ("batch",),
    "max-epochs": ("epochs",),
    "learning-rate": ("lr",),
    "lr0": ("lr",),
    "num-workers": ("workers",),
    "checkpoint": ("weights", "start"),
    "ckpt": ("weights", "start"),
    "weights": ("start",),
    "pretrained": ("start",),
    "load-from": ("start",),
    "cfg-options": ("set",),
    "gpus": ("devices", "device"),
    "device": ("devices",),
    "amp": ("precision",),
    "half": ("precision",),
    "patience": ("early-stop",),
    "exist-ok": ("overwrite",),
    "task": ("split",),
    "augment": ("views",),
    "tta": ("views",),
    "eval": ("metrics",),
    "iou": ("set",),
    "iou-thres": ("set",),
    "nms": ("set",),
    "max-det": ("set",),
}
_WRITTEN: Final = {  # settings that have no option of their own
    "iou": " detector.nms=0.5",
    "iou-thres": " detector.nms=0.5",
    "nms": " detector.nms=0.5",
    "max-det": " detector.keep=300",
    "amp": " bf16",
    "half": " fp16",
}


def named_elsewhere(word: str, known: Sequence[str]) -> str:
    """What an option of another program is called here; empty when nobody knows."""
    name = word.lstrip("-").replace("_", "-").lower()
    if name == "classes" and "--score" in known:
        return "all classes of the weights are looked for; choose among them in the results"
    places = {one.lstrip("-").replace("_", "-"): one for one in known}
    found = next((places[one] for one in _ELSEWHERE.get(name, ()) if one in places), None)
    if found is None:
        return ""
    if found.isupper():
        return f"give it without an option: {found}"
    return f"here it is {found}{_WRITTEN.get(name, '')}"
