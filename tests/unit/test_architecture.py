"""The rules of the house: who may import whom, and what is done in one place only."""

from __future__ import annotations

import ast
import collections
import functools
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.waiting import PATIENCE

TOP = Path(__file__).resolve().parents[2]

#: part -> the other parts it may import. Every part may import itself and lunr.common.
LAYERS: dict[str, set[str]] = {
    "common": set(),
    "db": set(),
    "api": {"db"},
    "backup": set(),
    "storage": {"backup"},
    "live": {"backup", "client"},
    "client": set(),
    "manage": {"api", "db", "backup"},
    "up": set(),
}

#: Imports that belong to some parts or files alone (paths start with these).
HOMES: dict[str, tuple[str, ...]] = {
    "eventlet": ("lunr/common/concurrency.py",),
    "greenlet": (),
    "subprocess": (
        "lunr/storage/system.py",
        "lunr/storage/engine.py",
        "lunr/storage/restore/process.py",
        "lunr/up.py",
        "lunr/live/qemu/guard.py",
        "lunr/live/qemu/libvirt.py",
        "lunr/live/start/instant_start.py",
    ),
    "multiprocessing": (),
    "pty": (),
    "sqlalchemy": ("lunr/db/", "lunr/api/"),
    "alembic": ("lunr/db/",),
    "swiftclient": ("lunr/backup/stores/",),
    "routes": ("lunr/api/",),
    "keystonemiddleware": ("lunr/api/middleware/keystone.py",),
    "keystoneauth1": ("lunr/api/middleware/keystone.py", "lunr/backup/stores/swift.py"),
}

#: What ``os`` has to start a process, past ``subprocess`` and its argument lists.
_VARIANTS = ("l", "le", "lp", "lpe", "v", "ve", "vp", "vpe")
SHELLS = {
    *("system", "popen", "fork", "forkpty", "posix_spawn", "posix_spawnp"),
    *(name + variant for name in ("exec", "spawn") for variant in _VARIANTS),
}

LONGEST_FILE = 600
#: Modules in one folder, without `__init__.py`.
LARGEST_FOLDER = 16


def _sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (TOP / folder).rglob("*.py"))


@functools.cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _name(path: Path) -> str:
    return path.relative_to(TOP).as_posix()


def imports(path: Path, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, full dotted name) of everything that the module at `path` imports, anywhere in it."""
    package = list(path.relative_to(TOP).with_suffix("").parts[:-1])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"


def layer_breach(importer: str, name: str) -> bool:
    """Whether the module file `importer` may not import `name`."""
    parts = name.split(".")
    own = Path(importer).with_suffix("").parts[1]
    if parts[0] != "lunr" or own == "__init__" or parts[1] == "__version__":
        return False
    return parts[1] not in {own, "common", *LAYERS.get(own, set())}


def home_breach(importer: str, name: str) -> bool:
    """Whether `name` is another file's to import than `importer`."""
    top = name.split(".")[0]
    return top in HOMES and not importer.startswith(HOMES[top] or ("-",))


def test_the_layers_hold() -> None:
    found = [
        f"{_name(path)}:{line} imports {name}"
        for path in _sources("lunr")
        for line, name in imports(path, _parsed(path))
        if layer_breach(_name(path), name) or home_breach(_name(path), name)
    ]
    assert not found, "\n".join(found)


#: What only the nouns of the API know; the machinery of their jobs does without.
NOUNS = (
    "lunr.api.services",
    *(f"lunr.db.models.{name}" for name in ("Volume", "Snapshot", "Backup", "Export")),
    *(f"lunr.common.states.{name}" for name in ("Volume", "Snapshot", "Backup", "Export")),
)


def test_the_machinery_of_jobs_knows_no_noun() -> None:
    found = [
        f"{_name(path)}:{line} imports {name}"
        for path in _sources("lunr/api/jobs")
        for line, name in imports(path, _parsed(path))
        if name.startswith(NOUNS)
    ]
    assert not found, "\n".join(found)


@pytest.mark.starts(Path(sys.executable).name)
@pytest.mark.parametrize("module", [path.stem for path in _sources("lunr/api/jobs")])
def test_each_module_of_the_machinery_of_jobs_can_be_imported_alone(module: str) -> None:
    argv = [sys.executable, "-c", f"import lunr.api.jobs.{module}"]
    subprocess.run(argv, check=True, cwd=TOP, timeout=PATIENCE)


def runtime_imports(path: Path, tree: ast.Module) -> Iterator[str]:
    """What is imported when the module at `path` is: not in functions, nor for types alone."""
    bodies: list[ast.AST] = [tree]
    while bodies:
        for node in ast.iter_child_nodes(bodies.pop()):
            match node:
                case ast.Import() | ast.ImportFrom():
                    alone = ast.Module([node], [])
                    yield from (name for _, name in imports(path, alone))
                case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                    pass
                case ast.If() | ast.Try() | ast.ExceptHandler() | ast.With() | ast.ClassDef():
                    bodies.append(node)


def cycles(imported: dict[str, set[str]]) -> set[str]:
    """The modules that import themselves by way of others."""
    reach = {module: set(names) for module, names in imported.items()}
    for middle in reach:
        for names in reach.values():
            if middle in names:
                names |= reach[middle]
    return {module for module, names in reach.items() if module in names}


def test_modules_do_not_import_each_other_in_circles() -> None:
    modules = {}
    for path in _sources("lunr"):
        parts = path.relative_to(TOP).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    imported = {
        module: {
            name if name in modules else name.rpartition(".")[0]
            for name in runtime_imports(path, _parsed(path))
        }
        & modules.keys()
        for module, path in modules.items()
    }
    assert cycles(imported) == set()


def test_a_circle_of_imports_is_seen() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == {"b", "c"}
    tree = ast.parse(
        "import x\nif TYPE_CHECKING:\n    import y\ndef f():\n    import z\n"
        "try:\n    from . import w\nexcept ImportError:\n    import v"
    )
    path = TOP / "lunr/api/v1/volumes.py"
    assert sorted(runtime_imports(path, tree)) == ["lunr.api.v1.w", "v", "x"]


def writes_of_needs(tree: ast.AST) -> Iterator[int]:
    """The lines that change which backups a record needs."""
    columns = {"base_id", "parent_id"}
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name, ctx=ast.Store()) if name in columns:
                yield node.lineno
            case ast.Call(func=ast.Attribute(attr="values"), keywords=words):
                yield from (node.lineno for word in words if word.arg in columns)


def test_what_a_record_needs_is_changed_where_that_is_followed() -> None:
    home = "lunr/api/services/dependencies.py"
    found = [
        f"{_name(path)}:{line}"
        for path in _sources("lunr/api", "lunr/db")
        if _name(path) != home
        for line in writes_of_needs(_parsed(path))
    ]
    assert not found, f"call {home}: change_needs instead: {found}"


@pytest.mark.parametrize(
    "code", ["v.base_id = None", "a.x = b.parent_id = y", "update(V).values(base_id=None)"]
)
def test_a_change_of_what_a_record_needs_is_seen(code: str) -> None:
    assert list(writes_of_needs(ast.parse(code))) == [1]


def test_every_part_has_its_layer() -> None:
    parts = {path.relative_to(TOP / "lunr").with_suffix("").parts[0] for path in _sources("lunr")}
    assert parts - {"__init__"} <= LAYERS.keys()


@pytest.mark.parametrize(
    ("importer", "name", "breach"),
    [
        ("lunr/api/main.py", "lunr.db.models", False),
        ("lunr/api/main.py", "lunr.storage", True),
        ("lunr/db/models.py", "lunr.api", True),
        ("lunr/backup/save.py", "lunr.db", True),
        ("lunr/storage/agent/agent.py", "lunr.backup.format", False),
        ("lunr/storage/agent/agent.py", "lunr.client.Client", True),
        ("lunr/client/cli/main.py", "lunr.__version__", False),
        ("lunr/common/log.py", "lunr.db", True),
        ("lunr/up.py", "lunr.common.errors", False),
        ("lunr/up.py", "lunr.api.main", True),
    ],
)
def test_a_breach_of_the_layers_is_seen(importer: str, name: str, breach: bool) -> None:
    assert layer_breach(importer, name) is breach


@pytest.mark.parametrize(
    ("importer", "name", "breach"),
    [
        ("lunr/common/concurrency.py", "eventlet", False),
        ("lunr/api/main.py", "eventlet.wsgi", True),
        ("lunr/storage/system.py", "subprocess", False),
        ("lunr/storage/pools/files/pool.py", "subprocess.run", True),
        ("lunr/storage/agent/agent.py", "sqlalchemy.orm", True),
        ("lunr/backup/stores/swift.py", "swiftclient", False),
        ("lunr/api/main.py", "greenlet", True),
    ],
)
def test_an_import_away_from_its_home_is_seen(importer: str, name: str, breach: bool) -> None:
    assert home_breach(importer, name) is breach


def test_relative_imports_are_followed() -> None:
    tree = ast.parse("from . import one\nfrom ..db import models\nfrom ... import storage")
    names = [name for _, name in imports(TOP / "lunr/api/v1/volumes.py", tree)]
    assert names == ["lunr.api.v1.one", "lunr.api.db.models", "lunr.storage"]


def shells(tree: ast.AST) -> Iterator[int]:
    """The lines where a string may become a command, or a process starts past subprocess."""
    for node in ast.walk(tree):
        match node:
            case ast.keyword(arg="shell", value=ast.Constant(value=False)):
                pass
            case ast.keyword(arg="shell"):
                yield node.lineno
            case ast.Attribute(value=ast.Name(id="os"), attr=name) if name in SHELLS:
                yield node.lineno
            case ast.ImportFrom(module="os", names=names) if SHELLS & {one.name for one in names}:
                yield node.lineno


def test_no_shell() -> None:
    found = [
        f"{_name(path)}:{line}"
        for path in _sources("lunr", "tools")
        for line in shells(_parsed(path))
    ]
    assert not found, found


@pytest.mark.parametrize(
    "code",
    [
        "run('x', shell=True)",
        "run('x', shell=anything)",
        "os.system('x')",
        "os.execvp('x', [])",
        "from os import popen",
    ],
)
def test_a_shell_is_seen(code: str) -> None:
    assert list(shells(ast.parse(code))) == [1]


def test_no_shell_is_no_shell() -> None:
    assert list(shells(ast.parse("run(['x'], shell=False); os.path.join('x')"))) == []


def unsafe_modules(tree: ast.AST) -> Iterator[int]:
    """The lines that start a module of Python's with the folder one is in first on its path."""
    for node in ast.walk(tree):
        match node:
            case ast.List(elts=parts) | ast.Tuple(elts=parts):
                pairs = itertools.pairwise(ast.unparse(part) for part in parts)
                yield from (node.lineno for pair in pairs if pair == ("sys.executable", "'-m'"))


def test_no_module_is_taken_from_the_folder_that_root_happens_to_be_in() -> None:
    found = [
        f"{_name(path)}:{line}"
        for path in _sources("lunr")
        for line in unsafe_modules(_parsed(path))
    ]
    assert not found, f"say -P: {found}"


def test_a_module_that_is_started_unsafely_is_seen() -> None:
    assert list(unsafe_modules(ast.parse("run([sys.executable, '-m', 'lunr.x'])"))) == [1]
    assert not list(unsafe_modules(ast.parse("run([sys.executable, '-P', '-m', 'lunr.x'])")))


def test_no_module_is_about_everything() -> None:
    vague = {"util", "utils", "helper", "helpers", "misc"}
    found = [
        _name(path)
        for path in _sources("lunr", "tools", "tests")
        if vague & {*_name(path.with_suffix("")).split("/")}
    ]
    assert not found, found


def test_files_can_be_read_in_one_sitting() -> None:
    found = {
        _name(path): lines
        for path in _sources("lunr", "tools", "tests")
        if (lines := path.read_text().count("\n")) > LONGEST_FILE
    }
    assert not found, found


def test_no_folder_is_a_heap() -> None:
    modules = [path for path in _sources("lunr", "tests", "tools") if path.name != "__init__.py"]
    counts = collections.Counter(path.parent for path in modules)
    heaps = {_name(folder): count for folder, count in counts.items() if count > LARGEST_FOLDER}
    assert not heaps, heaps


def test_every_folder_of_tests_is_a_package() -> None:
    # Else two test files of the same name in two folders are the same module.
    folders = {path.parent for path in _sources("tests")}
    assert not [_name(folder) for folder in folders if not (folder / "__init__.py").exists()]
