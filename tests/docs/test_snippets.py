"""What the pages promise is executed: Python blocks run, commands are parsed, those marked so run too.

A comment before a block says how it is tested:

    <!-- run -->              a shell block: its `relook` commands run in an empty folder, one after the other
    <!-- not run: why -->     a Python block is only compiled; the others run, and share their names on a page

What the pages take for granted is prepared: the names in PREPARE, and YAML blocks under the name that a
`--config` of the page gives them. Training commands and calls are made small: see SMALLER. Each `relook`
command of any shell block is parsed by the real command line, and `make` targets must exist.
"""

import importlib
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

import relook
from golden import recipe as golden
from published import manifests
from relook import api
from relook.cli import VERBS, arguments, main
from relook.data.shapes import CLASSES, write_shapes
from relook.weights.models import by_name
from relook.weights.reading.checkpoint import save_weights

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference.md"  # signatures, made by `make pages`
PAGES = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")} - {REFERENCE})
BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>(?:not )?run\b[^>]*?) -->\s*\n)?^```(?P<language>\w+)[^\n]*\n(?P<code>.*?)^```",
    re.MULTILINE | re.DOTALL,
)
SHELLS = {"sh", "bash", "shell", "console"}
SMALLER = {
    "--epochs": "1",
    "--batch": "2",
    "--workers": "0",
}  # what makes a command of the pages fit into a test


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One code block of a page and how it is to be tested."""

    page: Path
    line: int
    language: str
    code: str
    mark: str

    @property
    def runs(self) -> bool:
        return self.mark.startswith("run") or (self.language == "python" and not self.mark)

    @property
    def needs(self) -> list[str]:
        """What must be there before it runs; a block that trains makes its run itself."""
        return [
            name for name in PREPARE if name in self.code and not ("runs" in name and "train" in self.code)
        ]

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """The code blocks of a page, in order."""
    text = page.read_text()
    return [
        Block(
            page=page,
            line=text.count("\n", 0, found.start("code")),
            language=found["language"],
            code=found["code"],
            mark=found["mark"] or "",
        )
        for found in BLOCK.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PYTHON_PAGES = [page for page in PAGES if any(block.language == "python" for block in blocks_of(page))]
SHELL = [block for block in BLOCKS if block.language in SHELLS]


# -- what blocks need ------------------------------------------------------------------------------------


def street(place: Path) -> None:
    """A picture of a size that cameras make."""
    Image.effect_mandelbrot((320, 240), (-2, -1.5, 1, 1.5), 60).convert("RGB").save(place)


def published(place: Path) -> None:
    """A file as the RepPoints V2 authors gave it away: their key names and extras, weights from a recipe."""
    config = relook.entry("reppoints_v2_r50_fpn_giou_2x").config
    manifest = manifests("reppoints")[config]
    state = {key: torch.from_numpy(value).float() for key, value in golden.state(manifest, {}).items()}
    torch.save({"meta": {"epoch": 24}, "state_dict": state}, place)


def folder_of_images(place: Path) -> None:
    """A small data set in COCO layout."""
    write_shapes(place, train=8, val=4)


def finished_run(place: Path) -> None:
    """What a training leaves: weights that describe themselves."""
    model = by_name("reppoints_nano").with_classes(CLASSES)
    state = model.entry.detector.build().state_dict()
    save_weights(place / "best.safetensors", state, model.describe())


PREPARE: dict[str, Callable[[Path], None]] = {
    "street.jpg": street,
    "published.pth": published,
    "mine/": folder_of_images,
    "runs/mine/": finished_run,
}


def prepare(block: Block, folder: Path) -> None:
    """Makes in `folder` whatever the block needs and is not there yet."""
    for need in block.needs:
        place = folder / need
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            PREPARE[need](place)
    for file, text in yaml_files(block.page).items():
        (folder / file).write_text(text)


def yaml_files(page: Path) -> dict[str, str]:
    """The YAML blocks of a page under the names that its `--config` options give them, in order."""
    names = dict.fromkeys(re.findall(r"--config (\S+\.ya?ml)", page.read_text()))
    blocks = [block.code for block in blocks_of(page) if block.language == "yaml"]
    return dict(zip(names, blocks, strict=False))


def small_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `relook.train(...)` of a page train a small model for one short epoch."""
    full = api.train

    def train(**asked: Any) -> Any:
        return full(**{**asked, "model": "reppoints_nano", **{k[2:]: int(v) for k, v in SMALLER.items()}})

    monkeypatch.setattr(relook, "train", train)


# -- Python ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PYTHON_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The Python blocks of a page run one after the other, as they stand."""
    small_training(monkeypatch)
    module = ModuleType("snippets_" + re.sub(r"\W", "_", str(page.relative_to(ROOT))))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    module.__dict__["relook"] = relook  # `import relook` goes without saying
    for block in (block for block in blocks_of(page) if block.language == "python"):
        program = compile("\n" * block.line + block.code, str(page), "exec")  # errors name the page's line
        if block.runs:
            prepare(block, tmp_path)
            exec(program, vars(module))


def test_every_block_is_found():
    """No fence of a page is overlooked, so no block escapes its test."""
    for page in PAGES:
        fences = re.findall(r"^```\w+", page.read_text(), re.MULTILINE)
        assert len(blocks_of(page)) == len(fences), page
    assert len(SHELL) > 5


# -- shell -----------------------------------------------------------------------------------------------


def commands(code: str) -> Iterator[list[str]]:
    """Each command of a shell block as words; prompts, comments, pipes and assignments in front left out."""
    code = re.sub(
        r"\$\([^)]*\)", "", code.replace("\\\n", " ")
    )  # what `$(...)` gives is known only on the day
    for line in code.splitlines():
        words = shlex.split(line.strip().removeprefix("$ "), comments=True)
        part: list[str] = []
        for word in [*words, ";"]:
            if word in {"|", ";", "&&", "||", "&", ">", ">>", "2>"}:
                if part:
                    yield part
                part = []
            elif part or "=" not in word:
                part.append(word)


def relook_words(command: list[str]) -> list[str] | None:
    """What follows `relook`, also behind `torchrun -m` or `srun`; None where relook does not run."""
    if {"pip", "cd", "git", "clone"} & set(command):
        return None
    for i, word in enumerate(command):
        if word == "relook" or word.endswith("/bin/relook"):
            return command[i + 1 :]
    return None


def spoken(block: Block) -> list[list[str]]:
    """The arguments of every `relook` command of a block."""
    return [words for command in commands(block.code) if (words := relook_words(command)) is not None]


def parsed(words: list[str]) -> object:
    """What the real command line makes of the words; an error names what is wrong."""
    verb = importlib.import_module(f"relook.cli.verbs.{words[0]}").VERB
    if "..." not in words:
        return arguments.parse(verb, words[1:])
    known = {"--config", *(f"--{one.name.replace('_', '-')}" for one in fields(verb.options))}
    flags = {word.partition("=")[0] for word in words if word.startswith("--")}
    if flags - known:  # of an abbreviated command only the names can be tried
        raise arguments.Wrong(f"there is no option {', '.join(sorted(flags - known))}")
    return verb


@pytest.mark.parametrize("block", [block for block in SHELL if spoken(block)], ids=str)
def test_commands_of_a_page_are_understood(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every `relook` command of the pages names a verb and options that exist, with values that fit."""
    monkeypatch.chdir(tmp_path)
    for file, text in yaml_files(block.page).items():
        (tmp_path / file).write_text(text)
    for words in spoken(block):
        if words and not words[0].startswith("-"):
            assert words[0] in VERBS, f"{block}: relook has no verb {words[0]}"
            parsed(words)


def test_a_wrong_command_would_be_noticed():
    """A misspelt option and a wrong value are refused by the parser that the pages are tried with."""
    assert parsed(["train", "--model", "reppoints_nano", "--data", "shapes", "--epochs", "2"]) is not None
    with pytest.raises(arguments.Wrong, match="--epochs"):
        parsed(["train", "--model", "reppoints_nano", "--data", "shapes", "--epoch5", "2"])
    with pytest.raises(arguments.Wrong, match="--epoch5"):
        parsed(["train", "...", "--epoch5", "2"])
    with pytest.raises(arguments.Wrong, match="whole number"):
        parsed(["train", "--model", "reppoints_nano", "--data", "shapes", "--epochs", "two"])


def test_commands_are_found_in_a_block():
    """Continued lines, prompts, launchers and pipes are seen through."""
    code = "$ relook train --model a \\\n  --data b  # ours\nTHREADS=1 torchrun -m relook eval | tee log\n"
    block = Block(page=ROOT / "README.md", line=0, language="sh", code=code, mark="")
    assert spoken(block) == [["train", "--model", "a", "--data", "b"], ["eval"]]


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_make_targets_of_a_page_exist(block: Block):
    """Every `make TARGET` of the pages is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = [w for c in commands(block.code) if c[0] == "make" for w in c[1:] if re.fullmatch("[a-z]+", w)]
    assert set(named) <= targets, f"{block}: {set(named) - targets}"


def smaller(words: list[str]) -> list[str]:
    """A training command of the pages as a small one: the same options, a small model, one short epoch."""
    if words[0] != "train":
        return words
    words = ["reppoints_nano" if before == "--model" else word for before, word in pairwise(["", *words])]
    for flag, value in SMALLER.items():
        if flag in words:
            words[words.index(flag) + 1] = value
        else:
            words += [flag, value]
    return words


@pytest.mark.parametrize("block", [block for block in SHELL if block.runs], ids=str)
def test_commands_of_a_page_run(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Blocks that are marked so run from first to last, each command with success."""
    monkeypatch.chdir(tmp_path)
    prepare(block, tmp_path)
    for words in spoken(block):
        assert main(smaller(words)) == 0, f"{block}: relook {shlex.join(words)}"
