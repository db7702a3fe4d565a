"""What is written down is true: the sample configuration, links, names of files and functions."""

from __future__ import annotations

import ast
import functools
import io
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from oslo_config import cfg, generator

from lunr.client.cli.main import cli
from lunr.client.cli.plugins import Plugin
from lunr.common import config

TOP = Path(__file__).resolve().parents[2]
NAMING = sorted([*(TOP / "docs").rglob("*.md"), TOP / "README.rst"])
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


#: A path of this checkout, with the names in it that may follow: `lunr/up.py: up, Settings.save`.
_PATH = re.compile(
    r"(?<![\w/.~$}-])"
    r"((?:(?:tests|tools|etc|bin|docs)/[\w./-]*\w)|(?:lunr/[\w/-]+\.py\b)|(?:(?<=`)lunr/[\w/-]*(?=`)))"
    r"(?:: ([\w., ]+)(?=`))?"
)


@functools.cache
def names_of(path: Path) -> frozenset[str]:
    """What the module at `path` defines: functions, classes, constants, and `Class.method`."""
    return frozenset(_names(ast.parse(path.read_text()).body))


def _names(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from _names(node.body, f"{node.name}.")
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (prefix + target.id for target in targets if isinstance(target, ast.Name))


def missing(page: Path) -> list[str]:
    """The files, folders and functions that `page` names and this checkout has not."""
    wrong = []
    for path, names in _PATH.findall(page.read_text()):
        if not (TOP / path).exists():
            wrong.append(path)
        elif names:
            known = names_of(TOP / path)
            listed = [name.strip() for name in names.split(",")]
            wrong += [f"{path}: {name}" for name in listed if name not in known]
    return wrong


@pytest.mark.parametrize("page", NAMING, ids=lambda page: str(page.relative_to(TOP)))
def test_every_file_and_function_that_is_named_is_there(page: Path) -> None:
    assert missing(page) == []


def test_a_name_of_nothing_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "`lunr/up.py`, `lunr/common/`, /etc/lunr/nothing.py, `lvs lunr/pool`, `bin/lunr x`,\n"
        "`lunr/common/ids.py: is_valid, nothing`, `tests/unit/test_documents.py: TOP, PAGES.x`,\n"
        "`lunr/db/session.py: Database.read, Database.nothing`,\n"
        "`lunr/nothing/`, `lunr/api/nothing.py: f`. (`tests/nothing.py`) tools/nothing --now\n"
    )
    assert missing(page) == [
        "lunr/common/ids.py: nothing",
        "tests/unit/test_documents.py: PAGES.x",
        "lunr/db/session.py: Database.nothing",
        "lunr/nothing/",
        "lunr/api/nothing.py",
        "tests/nothing.py",
        "tools/nothing",
    ]


def unknown(command: str) -> list[str]:
    """What of a `command` line that starts with bin/lunr or tools/… there is not."""
    program, *words = shlex.split(command, comments=True)
    if program != "bin/lunr":
        return [] if os.access(TOP / program, os.X_OK) else [program]
    at: click.Command = cli
    for word in words:
        if isinstance(at, click.Group) and not word.startswith("-"):
            child = at.get_command(click.Context(at), word)
            if child is None:
                return [word]
            at = child.load() if isinstance(child, Plugin) else child
    options = {name for param in at.params for name in param.opts} | {"--help"}
    return [word for word in words if word.startswith("--") and word not in options]


def commands_of_the_readme() -> list[str]:
    text = (TOP / "README.rst").read_text()
    return re.findall(r"^    ((?:bin|tools)/[^&\n]*)", text, re.MULTILINE)


def test_the_commands_of_the_readme_are_there() -> None:
    commands = commands_of_the_readme()
    assert len(commands) >= 10
    assert [(command, gone) for command in commands if (gone := unknown(command))] == []


@pytest.mark.parametrize(
    ("command", "gone"),
    [
        ("tools/nothing", ["tools/nothing"]),
        ("bin/lunr volume make --size 10", ["make"]),
        ("bin/lunr volume create --size 10 --bigger", ["--bigger"]),
        ("bin/lunr engine save disk.img --id monday  # --more", []),
    ],
)
def test_a_command_that_is_not_there_is_seen(command: str, gone: list[str]) -> None:
    assert unknown(command) == gone


def test_every_package_is_in_the_table_of_where_things_are() -> None:
    page = (TOP / "docs/architecture.md").read_text()
    rows = re.findall(r"^\| (`lunr/.*?) \|", page.split("## Where things are", 1)[1], re.MULTILINE)
    named = {path for row in rows for path in re.findall(r"`(lunr/[\w/]*)/`", row)}
    folders = {init.parent for init in (TOP / "lunr").rglob("__init__.py")}
    packages = {folder.relative_to(TOP).as_posix() for folder in folders} - {"lunr"}
    assert packages - named == set(), "packages that the table lacks"


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
