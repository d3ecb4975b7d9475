"""The tidy check of `make lint` finds what editors leave behind, and nothing else."""

from pathlib import Path

import pytest
import tidy

FAULTS = [
    (b"one\ntwo", "must end with one newline"),
    (b"one\n\n", "must end with one newline"),
    (b"one \n", ":1: blanks"),
    (b"one\n<<<<<<< ours\n", ":2: a merge"),
    (b"x" * 4_000_001, "too large"),
]


@pytest.mark.parametrize(("content", "said"), FAULTS)
def test_a_fault_is_told(tmp_path: Path, content: bytes, said: str):
    """Each kind of leftover is named with its file and line."""
    file = tmp_path / "page.md"
    file.write_bytes(content)
    assert any(said in fault for fault in tidy.faults(file))
    assert tidy.main([str(file)]) == 1


@pytest.mark.parametrize("content", [b"", b"one\n", b"one\n\ntwo\n", b"\x89PNG\0 \n\n"])
def test_a_tidy_file_passes(tmp_path: Path, content: bytes):
    """Empty files, whole lines and binary files are left alone."""
    file = tmp_path / "page.md"
    file.write_bytes(content)
    assert list(tidy.faults(file)) == []
    assert tidy.main([str(file)]) == 0
