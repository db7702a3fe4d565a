"""Names are made of the words of docs/glossary.md, and of words that the field has in common."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

TOP = Path(__file__).resolve().parents[2]
PAGE = TOP / "docs/glossary.md"

#: Words that are no terms of lunr, by what they belong to: the reason why they may be in a name.
COMMON: dict[str, str] = {
    "HTTP, WSGI and OpenStack's API": """
        access admin after all announcements api app auth body client dispatcher forbidden
        form healthcheck identity keystone maintenance method middleware openstack orbit own
        pagination params placement principal quota record records request resources
        response responses route routing schema schemas scoped server service services token
        tokens transport unauthorized url v views
        """,
    "types of values": """
        address array boolean choice date field fields id ids integer json kind layout mode
        name names object pair purpose size string text time times unit units value
        """,
    "databases": """
        catalog database db env migrate migrations models query transitions
        """,
    "programs and processes": """
        agent backend backoff base bucket builder cache child claimed cleanup cli clock code
        collect command commands common concurrency config connection context control create
        daemon delay deleting dependencies engine event events extend fetch flight gauges
        guard help input instant log lunr main manage memory metrics monitor move
        mover noun op open options output parallel plugin plugins policy process progress
        protocol queue rate reader registration registry report reporter result retry
        retrying run runner settings signals single spec state states statistics step stop
        storage strict supervisor system table timeout tree verdict wait waitable waiter
        waiting writer
        """,
    "errors and how they are said": """
        a abort allowed answer back bad broken busy cancelled cannot changes check checks
        conflict consistent contended corrupt damage damaged deleted died ended error errors
        exceeded exists expired failed faults found full illegal in invalid large left lost
        mismatch missing needed no not orphaned preempted problems protected ready refused
        remote reserve restarted room running saved silent small stale still stopped stuck
        such too unavailable unknown unreachable unreadable unsupported unusable usage use
        users wrong yields
        """,
    "block devices, file systems and Linux": """
        areas background backing bitmaps capacity clone cow device disk dm exceptions extent
        extents fiemap file files freeze fuse gaps geometry growth hardware header image
        initiator limit limited limits linux logical loop lvm map maps metadata mount
        overlay physical pv readonly restored restoring role scan scratch sector sync thin
        uncached wipe wiper
        """,
    "iSCSI targets": """
        configfs lio listing session sessions target targets tgt
        """,
    "QEMU and libvirt": """
        domain exported filter guest libvirt line lines live machine member nbd qemu qmp
        resized start up
        """,
    "archives and encryption": """
        barbican cipher compression derive format from gc hashes index indexes keys manager
        packer patched patching piece ref rewrite shard source stored swift verification
        verified verify wire
        """,
}


class Word(NamedTuple):
    """A row of the glossary: the words of the term, and the words that it took the place of."""

    words: frozenset[str]
    retired: frozenset[str]


def rows(page: str) -> Iterator[Word]:
    """The rows of the tables of a glossary."""
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == 4 and cells[0] not in ("word", "---"):
            term, retired = (frozenset(words(cells[number])) for number in (0, 3))
            yield Word(term, retired)


def words(name: str) -> list[str]:
    """The words of a name, in lower case.

    >>> words("LVMPool_of2"), words("dedup candidates")
    (['lvm', 'pool', 'of'], ['dedup', 'candidates'])
    """
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def is_known(word: str, known: frozenset[str]) -> bool:
    """Whether a word is known, in the singular or in the plural.

    >>> is_known("retries", frozenset({"retry"})), is_known("foos", frozenset({"bar"}))
    (True, False)
    """
    forms = {word, word + "s", word.removesuffix("s"), word.removesuffix("es")}
    forms |= {word.removesuffix("ies") + "y", word.removesuffix("y") + "ies"}
    return bool(forms & known)


@functools.cache
def glossary() -> tuple[frozenset[str], frozenset[str]]:
    """The words of the glossary, and those that it retired."""
    found = list(rows(PAGE.read_text()))
    known = frozenset().union(*(row.words for row in found))
    retired = frozenset().union(*(row.retired for row in found))
    return known, retired


def common() -> frozenset[str]:
    return frozenset(" ".join(COMMON.values()).split())


@functools.cache
def modules() -> dict[str, ast.Module]:
    paths = sorted((TOP / "lunr").rglob("*.py"))
    # The names of migrations tell what was done when they were made.
    return {
        str(path.relative_to(TOP)): ast.parse(path.read_text())
        for path in paths
        if "migrations/versions" not in str(path)
    }


def nouns() -> Iterator[tuple[str, str]]:
    """(where, name) of every module, package and class."""
    for path, tree in modules().items():
        for part in path.removesuffix(".py").split("/")[1:]:
            if part != "__init__":
                yield path, part
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                yield path, node.name


def names_and_docstrings() -> Iterator[tuple[str, str, bool]]:
    """(where, text, whether it is a docstring) of all that is named or explained."""
    for path, tree in modules().items():
        for node in ast.walk(tree):
            where = f"{path}:{getattr(node, 'lineno', 1)}"
            match node:
                case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                    yield where, name, False
                case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()):
                    yield where, name, False
                case ast.Attribute(attr=name, ctx=ast.Store()):
                    yield where, name, False
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                yield where, ast.get_docstring(node) or "", True


def test_modules_and_classes_are_named_by_the_glossary() -> None:
    known = glossary()[0] | common()
    strange = {
        f"{word}: {name} in {path}"
        for path, name in nouns()
        for word in words(name)
        if not is_known(word, known)
    }
    assert not strange, "name it by docs/glossary.md, or say in COMMON what the word belongs to"


def test_no_common_word_is_left_over() -> None:
    used = frozenset(word for _, name in nouns() for word in words(name))
    assert not {word for word in common() if not is_known(word, used)}


#: Where a retired word is a public name: a kind of object, a field of JSON.
PUBLIC = {
    ("lunr/backup/format/names.py", "condemned"),
    ("lunr/backup/repository/collect.py", "condemned"),
    ("lunr/client/records.py", "condemned"),
}


def test_the_words_that_are_retired_are_gone() -> None:
    retired = glossary()[1]
    assert not {
        f"{where}: {word}"
        for where, text, is_docstring in names_and_docstrings()
        for word in words(re.sub(r"``.*?``|`.*?`", "", text) if is_docstring else text)
        if word in retired and (where.partition(":")[0], word) not in PUBLIC
    }


@pytest.mark.parametrize(
    ("line", "row"),
    [
        (
            "| node | a machine | hypervisor | host |",
            Word(frozenset({"node"}), frozenset({"host"})),
        ),
        ("| mark, sweep | find | | |", Word(frozenset({"mark", "sweep"}), frozenset())),
    ],
)
def test_rows_are_read(line: str, row: Word) -> None:
    assert list(rows(line)) == [row]


def test_the_glossary_is_read() -> None:
    known, retired = glossary()
    assert {"baseline", "handover", "quarantine"} <= known
    assert {"vault", "roving"} <= retired
    assert not known & retired
