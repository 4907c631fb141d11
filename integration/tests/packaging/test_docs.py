"""The links in the documentation point to existing files and headings. Needs no server."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.daemon import DOCUMENTS, REPOSITORY

LINK = re.compile(r"!?\[(?:[^\]\[]|\[[^\]]*\])*\]\(([^)\s]+)\)")


def prose(path: Path) -> str:
    """A document without its code, where brackets have other meanings."""
    text = re.sub(r"^ *(```|~~~).*?^ *\1", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", lambda code: re.sub(r"[\[\]()]", "", code[0]), text)


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub creates for the headings of a document."""
    found: dict[str, int] = {}
    anchors = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", prose(path), flags=re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        count = found.get(slug, 0)
        found[slug] = count + 1
        anchors.add(f"{slug}-{count}" if count else slug)
    return anchors


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_point_to_existing_files_and_headings(path: Path) -> None:
    links = [link for link in LINK.findall(prose(path)) if "://" not in link]
    for link in links:
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), f"{path.name} points at {link}, which is not there"
        assert target.is_relative_to(REPOSITORY), f"{path.name} points at {link}, outside"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{path.name} points at {link}: no such heading"


def test_every_document_can_be_reached_from_the_readme() -> None:
    reached = {REPOSITORY / "README.md"}
    waiting = list(reached)
    while waiting:
        path = waiting.pop()
        for link in LINK.findall(prose(path)):
            target = (path.parent / link.partition("#")[0]).resolve()
            if target.suffix == ".md" and target.exists() and target not in reached:
                reached.add(target)
                waiting.append(target)
    assert set(DOCUMENTS) <= reached


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [
        ("# Metrics and health: `--listen`", "metrics-and-health---listen"),
        ("## On the worker: `celeriac://`", "on-the-worker-celeriac"),
        ("### [Links](a.md) & more", "links--more"),
    ],
)
def test_anchors_are_those_of_github(heading: str, anchor: str, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(f"{heading}\n\n```\n# no heading\n```\n\n{heading}\n")
    assert anchors(tmp_path / "a.md") == {anchor, f"{anchor}-1"}


def test_alerts_are_described_in_the_guide() -> None:
    rules = (REPOSITORY / "monitoring" / "alerts.yml").read_text()
    guide = (REPOSITORY / "docs" / "operating.md").read_text()
    alerts = re.findall(r"- alert: (\w+)", rules)
    assert alerts
    for alert in alerts:
        assert f"`{alert}`" in guide, f"{alert} is not in docs/operating.md"
