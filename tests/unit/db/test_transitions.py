"""Statuses change in one place, along the moves of lunr.common.states, and nowhere else."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import insert, select
from sqlalchemy.orm import Session

import lunr
from lunr.common import errors, states
from lunr.db import migrate
from lunr.db.models import Node
from lunr.db.session import Database
from lunr.db.transitions import move, try_move

HOME = Path(lunr.__file__).parent
MODELS = {"Volume", "Snapshot", "Backup", "Export", "Node", "Job"}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path}/lunr.db"
    migrate.upgrade(url)
    database = Database(url)
    yield database
    database.close()


def _writes_status(tree: ast.AST) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(t, ast.Attribute) and t.attr == "status" for t in targets):
                yield node.lineno
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            named = any(keyword.arg == "status" for keyword in node.keywords)
            keyed = any(isinstance(a, ast.Constant) and a.value == "status" for a in node.args)
            if (named and name in {"values", *MODELS}) or (keyed and name == "setattr"):
                yield node.lineno


def test_nothing_else_writes_a_status() -> None:
    found = {
        str(path.relative_to(HOME)): lines
        for folder in ("api", "db")
        for path in (HOME / folder).rglob("*.py")
        if (lines := list(_writes_status(ast.parse(path.read_text()))))
    }
    assert list(found) == ["db/transitions.py"], found


@pytest.mark.parametrize(
    "code", ["v.status = 'X'", "update(V).values(status='X')", "Job(status='X')"]
)
def test_the_search_for_such_writes_finds_them(code: str) -> None:
    assert list(_writes_status(ast.parse(code))) == [1]


def test_only_legal_moves_are_made(database: Database) -> None:
    for origin, target in itertools.product(states.Node, states.Node):
        id = f"{origin}-{target}"
        database.write(
            lambda session, **row: session.execute(insert(Node).values(**row)), id=id, status=origin
        )
        moved = database.write(try_move, Node, id, target, weight=7)
        with database.read() as connection:
            row = connection.execute(select(Node.status, Node.weight).where(Node.id == id)).one()
        legal = target in states.MOVES[states.Node][origin]
        assert moved == legal
        assert tuple(row) == ((target, 7) if legal else (origin, 100))


def test_a_refused_move_says_what_is_needed(database: Database) -> None:
    database.write(lambda session: session.add(Node(id="n")))
    with pytest.raises(errors.WrongState, match="The node n is PENDING; to sink it it must be ACT"):
        database.write(move, Node, "n", states.Node.DOWN, "sink it")
    with pytest.raises(errors.NotFound, match="no node m"):
        database.write(move, Node, "m", states.Node.DOWN, "sink it")


def test_only_narrows_the_states_to_come_from(database: Database) -> None:
    database.write(lambda session: session.add(Node(id="n")))
    assert not database.write(try_move, Node, "n", states.Node.ACTIVE, only=("DOWN",))
    assert database.write(try_move, Node, "n", states.Node.ACTIVE, only=("PENDING",))


def test_what_follows_a_move_is_done_in_its_transaction(database: Database) -> None:
    database.write(lambda session: session.add(Node(id="n")))
    followed: list[tuple[str, str]] = []

    def follow(session: Session, id: str) -> None:
        followed.append((id, session.get_one(Node, id).status))
        session.get_one(Node, id).weight = 7

    database.follow_ups[Node, "ACTIVE"] = follow
    assert not database.write(try_move, Node, "n", states.Node.DOWN)
    assert database.write(try_move, Node, "n", states.Node.MAINTENANCE)
    assert followed == []
    assert database.write(try_move, Node, "n", states.Node.ACTIVE)
    assert followed == [("n", "ACTIVE")]
    with database.read() as connection:
        assert connection.scalar(select(Node.weight)) == 7
