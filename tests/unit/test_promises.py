"""The table of promises in docs/development.md names tests that exist and run by default."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
TESTS = TOP / "tests"
TITLE = "### Promises"
#: The promises of the design that are built, in whole or in part.
BUILT = {1, 2, 3, 4, 5, 6, 7, 8, 10}

_NAME = re.compile(r"`([\w/]+\.py)::(?:(\w+)::)?(\w+)`")


def section() -> str:
    """What the page says of the promises."""
    return (TOP / "docs/development.md").read_text().split(f"{TITLE}\n", 1)[1].split("\n#", 1)[0]


def rows() -> list[tuple[int, str, list[tuple[str, ...]]]]:
    """The number of a promise, a part of it, and the tests: each file, class ("": none), name."""
    cells = re.findall(r"^\| (\d+) \| (.+?) \| (.+) \|$", section(), re.MULTILINE)
    return [(int(number), part, _NAME.findall(tests)) for number, part, tests in cells]


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def is_thorough(node: ast.AST) -> bool:
    """Whether `node`, a decorator or a value of ``pytestmark``, is the mark of what takes long."""
    return any(
        isinstance(part, ast.Attribute) and ast.unparse(part) == "pytest.mark.thorough"
        for part in ast.walk(node)
    )


def marks(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """What a module or class assigns to ``pytestmark``."""
    for node in body:
        if isinstance(node, ast.Assign) and "pytestmark" in map(ast.unparse, node.targets):
            yield node.value


def find_class(path: Path, name: str) -> tuple[Path, ast.ClassDef] | None:
    """The class `name` of the module at `path`, or that it imports from another one of tests."""
    for node in parse(path).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return path, node
        if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
            source = TOP / f"{(node.module or '').replace('.', '/')}.py"
            return find_class(source, name) if source.exists() else None
    return None


def find_test(path: Path, class_name: str, name: str) -> list[ast.AST] | None:
    """What may mark the test as one that takes long; None: there is no such test.

    A test of a class may be inherited. A state machine is a test by the name that its
    ``TestCase`` has.
    """
    if not path.exists():
        return None
    module = parse(path)
    around: list[ast.AST] = list(marks(module.body))
    if not class_name:
        for node in module.body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                return [*around, *node.decorator_list]
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
                return around if ast.unparse(node.value).endswith(".TestCase") else None
        return None
    found = find_class(path, class_name)
    if found is None:
        return None
    path, node = found
    around += [*node.decorator_list, *marks(node.body)]
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and method.name == name:
            return [*around, *method.decorator_list]
    for base in node.bases:
        inherited = find_test(path, ast.unparse(base), name)
        if inherited is not None:
            return [*around, *inherited]
    return None


def test_every_promise_that_is_built_has_tests() -> None:
    assert {number for number, _, _ in rows()} == BUILT
    assert not [part for _, part, tests in rows() if not tests]


def test_the_tests_exist_and_run_by_default() -> None:
    wrong = []
    for number, part, tests in rows():
        for file, class_name, name in tests:
            found = find_test(TESTS / file, class_name, name)
            if found is None:
                wrong.append(f"{number}, {part}: there is no {file}::{class_name}::{name}")
            elif not name.lower().startswith("test") or any(map(is_thorough, found)):
                wrong.append(f"{number}, {part}: {file}::{name} does not run by default")
    assert not wrong, "\n".join(wrong)


def test_no_line_of_the_table_is_overlooked() -> None:
    lines = re.findall(r"^\|.*", section(), re.MULTILINE)[2:]  # but for the head
    assert len(lines) == len(rows())
    assert [line.count(".py::") for line in lines] == [len(tests) for _, _, tests in rows()]


@pytest.mark.parametrize(
    ("file", "class_name", "name", "exists"),
    [
        ("unit/test_promises.py", "", "test_every_promise_that_is_built_has_tests", True),
        ("unit/backup/save/test_chains.py", "", "TestChain", True),
        (
            "unit/backup/stores/test_stores.py",
            "TestFiles",
            "test_a_failed_put_leaves_nothing",
            True,
        ),
        (
            "unit/backup/stores/test_stores.py",
            "TestFiles",
            "test_what_is_put_is_got",
            True,
        ),  # inherited
        ("unit/backup/stores/test_stores.py", "TestFiles", "test_nothing", False),
        ("unit/backup/stores/test_stores.py", "TestNothing", "test_what_is_put_is_got", False),
        ("unit/backup/stores/test_stores.py", "", "test_what_is_put_is_got", False),
        ("unit/test_nothing.py", "", "test_nothing", False),
        ("unit/test_promises.py", "", "TITLE", False),
    ],
)
def test_a_name_without_a_test_is_seen(file: str, class_name: str, name: str, exists: bool) -> None:
    assert (find_test(TESTS / file, class_name, name) is not None) is exists


@pytest.mark.parametrize(
    "code",
    [
        "@pytest.mark.thorough\ndef test_it(): ...",
        "pytestmark = [pytest.mark.slow, pytest.mark.thorough]\ndef test_it(): ...",
        "@pytest.mark.thorough\nclass Test:\n def test_it(self): ...",
        "class Test:\n pytestmark = pytest.mark.thorough\n def test_it(self): ...",
        "class Tests:\n @pytest.mark.thorough\n def test_it(self): ...\nclass Test(Tests): ...",
    ],
)
def test_what_takes_long_is_seen(tmp_path: Path, code: str) -> None:
    path = tmp_path / "test_it.py"
    path.write_text(code)
    found = find_test(path, "Test" if "class" in code else "", "test_it")
    assert found is not None
    assert any(map(is_thorough, found))
