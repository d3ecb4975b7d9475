"""Pages say what the code says: generated parts are current, links lead somewhere, quirks have tests."""

import re
from pathlib import Path

import pages
import pytest

ROOT = pages.ROOT
WRITTEN = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
GENERATED_LATER = {ROOT / "docs" / "reference.md"}  # made by `make docs`


def name(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in pages.PAGES if page not in pages.BUILT], ids=name)
def test_generated_parts_are_current(page: Path):
    """What is generated in a page is what would be generated now."""
    text = page.read_text() if page.is_file() else ""
    assert pages.PAGES[page](text) == text, f"{name(page)} is stale; run `make pages`"


def test_stale_parts_are_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A page that differs in one character is told as stale."""
    page = tmp_path / "numbers.md"
    monkeypatch.setattr(pages, "PAGES", {page: lambda _: "new\n"})
    assert pages.stale() == [page]
    page.write_text("new\n")
    assert pages.stale() == []
    page.write_text("old\n")
    assert pages.stale() == [page]


def test_a_page_without_marks_is_refused():
    """A generated part never vanishes because somebody removed its marks."""
    with pytest.raises(ValueError, match="no marks"):
        pages.readme("# relook\n")


def prose(text: str) -> str:
    """Markdown without its code."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, made as the site makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize("page", WRITTEN, ids=name)
def test_links_lead_somewhere(page: Path):
    """Every relative link names a file that is there and, after #, a heading of it."""
    broken: list[str] = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if file not in GENERATED_LATER and not file.exists():
            broken.append(f"{target}: no such file")
        elif anchor and anchor not in anchors(file):
            broken.append(f"{target}: no such heading")
    assert not broken, f"{name(page)}: {broken}"


def test_the_site_has_every_page():
    """A page of docs/ is in the site's navigation, or is linked from a page that is an index."""
    config = (ROOT / "zensical.toml").read_text()
    index = (ROOT / "docs" / "decisions" / "index.md").read_text()
    missing = [
        name(page)
        for page in (ROOT / "docs").rglob("*.md")
        if f'"{page.relative_to(ROOT / "docs")}"' not in config and f"({page.name})" not in index
    ]
    assert not missing, f"not in zensical.toml: {missing}"


def test_quirks_in_the_code_are_in_the_list_and_have_tests():
    """A quirk that the code names stands in docs/quirks.md and is held by a test of its name."""
    named = {
        found
        for file in (ROOT / "src").rglob("*.py")
        for found in re.findall(r"\b(?:rp|cn|rd|dp)-\d\d\b", file.read_text())
    }
    listed = pages.DOCS.joinpath("quirks.md").read_text()
    rows = dict(re.findall(r"^\| ([a-z]{2}-\d\d) \|.*\|([^|\n]*)\|$", listed, re.MULTILINE))
    assert named, "the code names no quirk"
    assert named <= rows.keys()
    assert not [quirk for quirk in sorted(named) if not rows[quirk].strip()], (
        "a quirk in the code without a test"
    )
