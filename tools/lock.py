"""Prints constraints.txt: every package of this environment at its version, but for relook itself."""

from importlib.metadata import distributions

LEFT_OUT = {"relook", "pip", "setuptools", "wheel"}  # ours, and what venv brings itself

HEAD = """\
# The set of packages that relook is tested with; `make` installs these, a wheel asks only for its floors.
# Written by `make lock`."""


def main() -> None:
    """Prints the lines in alphabetical order, local version parts such as `+cpu` left out."""
    found = {one.name: one.version.partition("+")[0] for one in distributions()}
    print(HEAD)
    for name in sorted(found.keys() - LEFT_OUT, key=str.lower):
        print(f"{name}=={found[name]}")


if __name__ == "__main__":
    main()
