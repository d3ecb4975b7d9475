"""`make oldest` asks for the oldest packages that pyproject.toml allows."""

import floors
import pytest


@pytest.mark.parametrize(
    ("asked", "oldest"),
    [
        ("torch>=2.9", "torch==2.9.*"),
        ("pillow>=11", "pillow==11.0.*"),
        ("timm>=1.0.20", "timm==1.0.20"),
        ("jsonargparse[signatures]>=4.48", "jsonargparse[signatures]==4.48.*"),
        ("pytorch-lightning>=2.6.6,<3", "pytorch-lightning==2.6.6"),
    ],
)
def test_a_floor_is_the_oldest_series(asked: str, oldest: str) -> None:
    """Exactly the version where three numbers are given, else the last patch of the first series."""
    assert floors.oldest(asked) == oldest


def test_every_package_has_a_floor() -> None:
    """A package without one is refused by its name; relook's own extras are no packages."""
    assert not [one for one in floors.floors() if one.startswith("relook")]
    assert any(one.startswith("torch==") for one in floors.floors())
    with pytest.raises(ValueError, match=r"'numpy'; give it a floor, such as numpy>=1.0"):
        floors.oldest("numpy")
