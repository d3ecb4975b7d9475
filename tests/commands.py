"""Commands of relook as tests run them: in this process, with what they say."""

import pytest

from relook.cli import main


def run(capsys: pytest.CaptureFixture[str], *given: object, status: int = 0) -> tuple[str, str]:
    """What a command says on stdout and stderr."""
    capsys.readouterr()
    assert main([str(word) for word in given]) == status, capsys.readouterr().err
    said = capsys.readouterr()
    return said.out, said.err
