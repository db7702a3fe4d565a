"""Which files need which: by imports, and by names of files, modules and commands in strings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping

#: What a command of setup.cfg runs: ``lunr-api = lunr.api.main:main``.
_COMMAND = re.compile(r"^    (lunr-\S+) = (lunr[\w.]*):\w+$", re.MULTILINE)
_WORD = re.compile(r"[\w./-]+")
#: A folder that is named may be read as a whole there; elsewhere it is just named.
_WHOLE = ("etc/", "docs/")
#: In a script: comments, and texts for people.
_PROSE = re.compile(r"^\s*#[^\n]*|<<'END'$.*?^END$", re.MULTILINE | re.DOTALL)


class Sources:
    """The files of the checkout.

    Args:
        texts: their texts by their paths.
    """

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts
        self._commands = dict(_COMMAND.findall(texts.get("setup.cfg", "")))
        self._by_name: dict[str, list[str]] = {}
        for path in texts:
            self._by_name.setdefault(path.rsplit("/", 1)[-1], []).append(path)

    def needs(self) -> dict[str, set[str]]:
        """The files that each file needs itself."""
        return {path: set(self._needs(path)) - {path} for path in self._texts}

    def _needs(self, path: str) -> Iterator[str]:
        text = self._texts[path]
        if path.startswith("tests/"):  # pytest reads them first
            yield from self._beside(path, "conftest.py")
        if not path.endswith(".py"):
            if "/" in path and not path.startswith(("docs/", "etc/")):  # a script
                for word in _WORD.findall(_PROSE.sub("", text)):
                    yield from self._meant(word)
            return
        yield from self._beside(path, "__init__.py")
        tree = ast.parse(text)
        documentation = _documentation(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                for name in _imported(path, node):
                    yield from self._module(name)
            elif isinstance(node, ast.Call):
                yield from self._called_tool(node)
            elif isinstance(node, ast.BinOp):
                yield from self._meant(_joined(node))
            elif isinstance(node, ast.Constant) and node not in documentation:
                yield from self._named(node.value)

    def _beside(self, path: str, name: str) -> Iterator[str]:
        """The files called `name` in the folder of `path` and those above."""
        parts = path.split("/")[:-1]
        for length in range(len(parts) + 1):
            found = "/".join([*parts[:length], name])
            if found in self._texts:
                yield found

    def _module(self, name: str) -> Iterator[str]:
        """The file of a module, or of the module that has something of that name."""
        path = name.replace(".", "/")
        for found in (f"{path}.py", f"{path}/__init__.py"):
            if found in self._texts:
                yield found
                return
        if "." in name:
            yield from self._module(name.rpartition(".")[0])

    def _named(self, text: object) -> Iterator[str]:
        """What a constant in Python names: a sentence only speaks of it."""
        if isinstance(text, str) and not re.search(r"\s", text):
            for word in _WORD.findall(text):
                yield from self._meant(word)

    def _called_tool(self, call: ast.Call) -> Iterator[str]:
        """The tool that a test calls by tests.support.services."""
        match call:
            case ast.Call(func=ast.Name(id="call_tool"), args=[ast.Constant(value=str(name)), *_]):
                yield from self._meant(f"tools/{name}")

    def _meant(self, word: str) -> Iterator[str]:
        if word in self._commands:
            yield from self._module(self._commands[word])
        if word.startswith(("lunr.", "tools.", "tests.")):
            found = self._module(word.rstrip("."))
            yield from (path for path in found if path != "lunr/__init__.py")
        if "/" in word:
            yield from self._at(word.strip("./"))
        elif "." in word and not word.endswith(".py"):
            yield from self._by_name.get(word, ())

    def _at(self, path: str) -> Iterator[str]:
        """The file at a path, which may have folders of another's before it; or those below.

        Who names a test's file runs it, and does not need it.
        """
        while "/" in path:
            if path in self._texts:
                if not path.startswith("tests/"):
                    yield path
                return
            if path.startswith(_WHOLE):
                yield from (one for one in self._texts if one.startswith(f"{path}/"))
                return
            path = path.partition("/")[2]


def _documentation(tree: ast.AST) -> set[ast.AST]:
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def _imported(path: str, node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    package = path.split("/")[: -node.level] if node.level else []
    module = ".".join([*package, *filter(None, [node.module])])
    yield from (f"{module}.{alias.name}" for alias in node.names)


def _joined(node: ast.expr) -> str:
    """The end of a path that is put together: ``tools/demo`` of ``TOP / "tools" / "demo"``."""
    parts: list[str] = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        if not (isinstance(node.right, ast.Constant) and isinstance(node.right.value, str)):
            break
        parts.insert(0, node.right.value)
        node = node.left
    return "/".join(parts)


def distances(needs: Mapping[str, Iterable[str]], changed: Iterable[str]) -> dict[str, int]:
    """The files that need something `changed`, however indirectly, and by how many steps."""
    needed_by: dict[str, set[str]] = {}
    for path, others in needs.items():
        for other in others:
            needed_by.setdefault(other, set()).add(path)
    found = dict.fromkeys(changed, 0)
    ring = list(found)
    while ring:
        following: list[str] = []
        for path in ring:
            for other in needed_by.get(path, ()):
                if other not in found:
                    found[other] = found[path] + 1
                    following.append(other)
        ring = following
    return found
