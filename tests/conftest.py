"""What every test shares: one thread per worker, and the parity page that golden tests fill."""

from collections import defaultdict
from pathlib import Path

import pytest
import torch

from parity_page import page

PARITY = Path(__file__).parent.parent / "docs" / "parity.md"
_found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
_failed: list[str] = []

torch.set_num_threads(1)  # two workers on two cores; and sums do not depend on the machine's size


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Collects what golden tests measured; with xdist this runs in the controlling process."""
    if report.failed:
        _failed.append(report.nodeid)
    for name, value in report.user_properties:
        if name == "parity" and report.when == "call":
            model, what, largest = str(value).rsplit("|", 2)
            _found[model][what].append(float(largest))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Writes docs/parity.md after a run of every golden test, where nothing failed."""
    if hasattr(session.config, "workerinput") or _failed or not session.config.getoption("--write-parity"):
        return
    PARITY.write_text(page(_found))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-parity", action="store_true", help="write docs/parity.md from the golden tests")
