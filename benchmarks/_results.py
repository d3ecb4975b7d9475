"""Where benchmarks keep their figures: one JSON file per kind of machine, one key per benchmark."""

import json
import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torchvision

from relook.files import whole_file

FOLDER = Path(os.path.relpath(Path(__file__).parent / "results"))


def processor() -> str:
    """The processor's name for people; no name of the host."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.is_file() else []
    return names[0] if names else platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """What a figure depends on: processor, cores, device, versions."""
    cuda = torch.cuda.is_available()
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def slug() -> str:
    """A file name for this kind of machine, such as `intel-xeon-2-cores` or `nvidia-h200`."""
    about = machine()
    words = about["gpu"] or f"{about['processor']} {about['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)|cpu|@", " ", words.lower())).strip("-")


def save(benchmark: str, figures: Any) -> Path:
    """Puts one benchmark's figures into this machine's file beside those of the others; returns the file."""
    file = FOLDER / f"{slug()}.json"
    kept = json.loads(file.read_text()) if file.is_file() else {}
    kept[benchmark] = {
        "machine": machine(),
        "when": datetime.now(UTC).date().isoformat(),
        "figures": figures,
    }
    with whole_file(file) as beside:
        beside.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    return file
