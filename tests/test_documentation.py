"""Documentation and code must say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from npu_core import environment

ROOT = Path(__file__).resolve().parent.parent
PATTERNS = ("README.md", "docs/*.md", "[be]*/README.md", "packages/*/*.md")
PAGES = sorted(path for pattern in PATTERNS for path in ROOT.glob(pattern))


def documented(title: str) -> set[str]:
    """Names of the variables in the table below a heading of environment.md."""
    text = (ROOT / "docs/environment.md").read_text()
    section = re.search(rf"^## {title}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"docs/environment.md has no section {title!r}"
    return set(re.findall(r"^\| `([A-Z_0-9]+)` \|", section[1], re.MULTILINE))


@pytest.mark.parametrize(("title", "accepted"), [("With an effect", False), ("Accepted, without effect", True)])
def test_environment_page_lists_the_registry(title: str, accepted: bool) -> None:
    registry = {variable.name for variable in environment.VARIABLES.values() if variable.accepted_only == accepted}
    assert documented(title) == registry


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert not missing, f"{page} links to {missing}"


def test_readme_has_exactly_two_commands_and_ci_runs_the_second() -> None:
    commands = re.findall(r"^```\n(.*?)\n```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert [command.rsplit(maxsplit=1)[-1] for command in commands] == ["demo", "tests"]
    assert commands[1] in (ROOT / ".ci/run").read_text()
