"""Prints the oldest packages that pyproject.toml allows, for pip: `make oldest` tests with these."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
_ASKED = re.compile(r"(?P<name>[\w.-]+(?:\[[\w,-]+\])?)>=(?P<floor>\d+(?:\.\d+)*)")


def oldest(asked: str) -> str:
    """`torch>=2.9` -> `torch==2.9.*`, the last patch of the oldest series; a floor with a patch is exact.

    Raises:
        ValueError: when a package is asked for without a floor.
    """
    found = _ASKED.match(asked)
    if found is None:
        raise ValueError(f"pyproject.toml asks for {asked!r}; give it a floor, such as {asked}>=1.0")
    parts = found["floor"].split(".")
    version = ".".join(parts) if len(parts) > 2 else ".".join([*parts, "0"][:2]) + ".*"
    return f"{found['name']}=={version}"


def floors(project: Path = ROOT / "pyproject.toml") -> list[str]:
    """Every package that relook or an extra asks for, but for relook itself."""
    asked = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    every = [
        *asked["dependencies"],
        *(one for extra in asked["optional-dependencies"].values() for one in extra),
    ]
    return [oldest(one) for one in every if not one.startswith(f"{asked['name']}[")]


if __name__ == "__main__":
    print("\n".join(floors()))
