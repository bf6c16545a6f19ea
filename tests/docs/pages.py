"""README and documentation pages, and what is in them: fenced blocks, commands, links, named flags and config keys."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
GENERATED_PAGES = ("reference/commands.md", "reference/config.md", "evidence/results.md")


class Block(NamedTuple):
    """A fenced block. needs: what it needs beyond a CPU machine with jdiff, empty if nothing."""

    language: str
    title: str
    text: str
    needs: str


def page_id(page):
    return str(page.relative_to(ROOT))


def blocks(page):
    """The fenced blocks of a page. The first line of one that a test cannot run is `# needs: WHAT`."""
    pattern = r"^```(\w+)(?: title=\"([^\"]*)\")?\n(.*?)^```"
    for language, title, text in re.findall(pattern, page.read_text(), re.MULTILINE | re.DOTALL):
        needs = re.match(r"# needs: (.*)", text)
        yield Block(language, title, text, needs[1] if needs else "")


def shell_commands(block):
    """The commands of a block, each a list of words."""
    text = re.sub(r"\\\n\s*", " ", block.text)
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


def prose(page):
    """A page's text without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def links(page):
    """The relative links of a page: path and anchor of each."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"\w+:", target):
            path, _, anchor = target.partition("#")
            yield path, anchor


def anchors(page):
    """The anchors of a page: those of its headings, and explicit ones."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    slugs = {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", re.sub(r"[`*]", "", t)).strip().lower()) for t in titles}
    return slugs | set(re.findall(r'id="([^"]+)"', page.read_text()))
