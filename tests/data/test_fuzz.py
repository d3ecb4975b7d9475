"""Damaged data sets: the doctor answers each, reading has its own error, none hangs or eats memory."""

import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings

import mutants
from relook.data.checks.check import check
from relook.data.formats.detect import read
from relook.data.sample import DataError

LIMIT = 5  # seconds for one data set
MEMORY = 1 << 30  # bytes above what the process had


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raises in what takes longer."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def answered(reader: str, damages: list[mutants.Damage]) -> None:
    """The doctor and the reader answer a damaged data set."""
    folder = Path(tempfile.mkdtemp(prefix="relook-mutant-"))
    try:
        names = mutants.laid_out(mutants.READERS[reader](), folder)
        for damage in damages:
            damage(folder, names)
        with within(LIMIT):
            report = check(folder)
            text = report.text()
        assert all(line.isprintable() for line in text.split("\n"))
        for split in ("train", "val"):
            refused, samples = "", ()
            try:
                with within(LIMIT):
                    samples = read(folder, split, masks=True).samples
            except DataError as error:
                refused = str(error)
            # what the doctor calls usable is read, but for a split that is not there
            assert not (report.usable and refused and "split" not in refused), refused
            assert all(np.isfinite(sample.boxes).all() for sample in samples)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


quiet = settings(
    deadline=None,
    database=None,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("reader", mutants.READERS)
def test_damaged_data_are_answered(reader: str):
    """A few of each reader, the same each time."""

    @settings(quiet, max_examples=40, derandomize=True)
    @given(mutants.damages())
    def tried(damages: list[mutants.Damage]) -> None:
        answered(reader, damages)

    tried()


@pytest.mark.slow
@pytest.mark.parametrize("reader", mutants.READERS)
def test_ten_thousand_damaged_data_are_answered(reader: str, record_property: Callable[[str, str], None]):
    """10,000 of each reader, others each time."""
    started, count = time.monotonic(), 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(quiet, max_examples=10_000)
    @given(mutants.damages())
    def tried(damages: list[mutants.Damage]) -> None:
        nonlocal count
        count += 1
        answered(reader, damages)

    tried()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < MEMORY, f"{grown / 1e6:.0f} MB more"
    seconds = time.monotonic() - started
    record_property("outcome", f"{count} damaged data sets, {seconds:.0f} s, {grown / 1e6:.0f} MB more")
