"""What is written down is true: the sample configuration, and the links between pages."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import pytest
from oslo_config import cfg, generator

from lunr.common import config

TOP = Path(__file__).resolve().parents[2]
PAGES = sorted([*(TOP / "docs").rglob("*.md"), *TOP.glob("*.rst"), *TOP.glob("*.md")])


def test_the_sample_configuration_is_what_the_code_says() -> None:
    conf = cfg.ConfigOpts()
    generator.register_cli_opts(conf)
    conf(args=["--namespace", "lunr", "--wrap-width", "78"], default_config_files=[])
    fresh = io.StringIO()
    generator.generate(conf, fresh)
    assert (TOP / "etc/lunr.conf.sample").read_text() == fresh.getvalue(), "run tools/sample-config"


@pytest.mark.parametrize("group", config.GROUPS)
def test_every_option_is_explained_in_a_sentence(group: str | None) -> None:
    for option in config.GROUPS[group]:
        assert (option.help or "").strip().endswith("."), option.name


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, made as the forges make them."""
    headings = re.findall(r"^#+ +(.*?) *#*$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


def broken_links(page: Path) -> list[str]:
    """The links of `page` (Markdown or reStructuredText) that lead to nothing in this checkout."""
    text = re.sub(r"^(```|~~~).*?^\1", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)" if page.suffix == ".md" else r"<([^>\s]+)>`_", text)
    broken = []
    for link in links:
        if re.match(r"[a-z]+:", link):  # elsewhere: not ours to keep
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_every_link_leads_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_broken_link_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# The title\n[a](other.md) [b](#the-title) [c](#no-title) [d](https://example.org)\n"
        "```\n[e](in-code.md)\n```\n"
    )
    assert broken_links(page) == ["other.md", "#no-title"]


def test_the_commands_of_a_checkout_can_be_run() -> None:
    commands = [path for folder in ("tools", "bin", ".ci") for path in (TOP / folder).iterdir()]
    scripts = [path for path in commands if path.is_file() and path.read_bytes().startswith(b"#!")]
    assert scripts
    assert not [path.name for path in scripts if not os.access(path, os.X_OK)]


def test_every_metric_is_in_the_operators_page() -> None:
    page = (TOP / "docs/operations.md").read_text()
    names = {f"lunr_{table}" for table in ("jobs", "volumes", "backups", "nodes")}
    for source in ("lunr/api/middleware/metrics.py", "lunr/storage/metrics.py"):
        names.update(re.findall(r'"(lunr_\w+)"', (TOP / source).read_text()))
    told = set(re.findall(r"`(lunr_\w+)`", page))
    assert told == names
