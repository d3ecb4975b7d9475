"""The command line: an overview, and one file for each verb, loaded when it is asked for."""

import importlib
import io
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.metadata import version
from typing import Final

VERBS: Final = {
    "demo": "train a small detector on generated pictures and show what it sees (5 minutes)",
    "models": "list the models: size, published accuracy, whose they are",
    "train": "train a model on your data",
    "eval": "measure a trained model: the 12 COCO numbers, and AP and AP50 of each class",
    "predict": "find objects in pictures, folders of them, or patterns",
    "convert": "turn a published checkpoint into a safe file that describes itself",
    "doctor": "say what is in a checkpoint, or what is wrong with a data set",
    "dataset": "write a data set in another format: COCO, Pascal VOC or YOLO",
}

OVERVIEW: Final = """relook finds objects by looking twice: a first look says where, a second look decides.

  relook VERB ...          what to do:
{verbs}

  relook VERB --help       all options of a verb, with an example

Three things to try:
  relook demo --short
  relook train --model reppoints_nano --data my_pictures/
  relook predict photo.jpg --weights runs/train/best.safetensors --points
"""


def overview() -> str:
    """What `relook` alone says."""
    return OVERVIEW.format(verbs="\n".join(f"    {name:<9}{words}" for name, words in VERBS.items()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb and gives the exit status: 0 done, 1 failed, 2 asked for wrongly, 130 interrupted."""
    # How long torch's threads spin before they sleep while they wait for each other. A training step of
    # reppoints_v2_nano on two cores, idle and beside two busy programs: 243 and 1065 ms as OpenMP has it,
    # 463 and 673 without spinning (OMP_WAIT_POLICY=passive), 224 and 638 so
    os.environ.setdefault("GOMP_SPINCOUNT", "100000")
    for stream in (sys.stdout, sys.stderr):  # names in letters that this terminal does not have are escaped
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    given = list(sys.argv[1:] if arguments is None else arguments)
    if "--traceback" in given:
        given.remove("--traceback")
        os.environ["RELOOK_TRACEBACK"] = "1"
    if given[:1] == ["help"]:
        given = [*given[1:2], "--help"]
    if not given or given[0] in ("-h", "--help"):
        print(overview())
        return 0
    if given[0] in ("-V", "--version"):
        print(f"relook {version('relook')}")
        return 0
    if given[0] not in VERBS:
        near = get_close_matches(given[0], VERBS, n=1)
        hint = f"did you mean `relook {near[0]}`?" if near else f"the verbs are {', '.join(VERBS)}"
        print(f"relook: there is no verb {given[0]!r}; {hint}", file=sys.stderr)
        return 2
    running = importlib.import_module("relook.cli.running")
    return running.run(given[0], given[1:])
