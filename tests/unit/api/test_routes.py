"""The table of routes and the page that describes the API name the same things."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lunr.api.routing import ROUTES, Table
from lunr.common import errors

PAGE = Path(__file__).resolve().parents[3] / "docs/api.md"
#: Answered by middleware, before routing.
APART = {("GET", "/healthcheck"), ("GET", "/metrics")}


def _nameless(path: str) -> str:
    return re.sub(r"\{\w+\}", "{}", path)


def documented(text: str) -> set[tuple[str, str]]:
    """(method, path) of every request that the page names, in its own shorthand."""
    found: set[tuple[str, str]] = set()
    last, methods = "", []
    for quoted in re.findall(r"`([^`\n]+)`", text):
        match = re.fullmatch(r"((?:[A-Z]+, )*[A-Z]+)(?: (\S+))?", quoted)
        if match and set(match[1].split(", ")) <= {"GET", "POST", "PUT", "DELETE"}:
            methods, path = match[1].split(", "), match[2] or ""
            if not path and not last:
                continue  # a word in a sentence
        elif quoted.startswith("/v1.0/"):
            path = quoted
        else:
            continue
        path = path.partition("?")[0]
        if path.startswith("…"):
            tail = path.removeprefix("…")
            parent = last.removesuffix(tail) if last.endswith(tail) else last
            path = parent + tail
        last = path or last
        choice = re.search(r"\{(\w+(?:,\w+)+)\}", last)
        for word in choice[1].split(",") if choice else [""]:
            whole = last.replace(choice[0], word) if choice else last
            found |= {(method, _nameless(whole)) for method in methods}
    return found


def test_routes_and_page_agree() -> None:
    table = {(route.method, _nameless(route.path)) for route in ROUTES} | APART
    page = documented(PAGE.read_text())
    assert table - page == set(), "routes that docs/api.md does not name"
    assert page - table == set(), "requests of docs/api.md that have no route"


def test_every_route_is_found_by_its_own_path() -> None:
    table = Table()
    for route in ROUTES:
        path = re.sub(r"\{(\w+)\}", r"the-\1", route.path)
        found, parts = table.match(route.method, path)
        assert found is route
        assert parts == {name: f"the-{name}" for name in re.findall(r"\{(\w+)\}", route.path)}


@pytest.mark.parametrize(
    "path",
    ["", "/", "/v1.0", "/v1.0/a", "/v1.0/a/volumes/", "/v1.0/a/volumes/b/", "//v1.0/a/volumes"],
)
def test_other_paths_lead_nowhere(path: str) -> None:
    with pytest.raises(errors.NoSuchRoute):
        Table().match("GET", path)


def test_a_wrong_method_is_told_the_right_ones() -> None:
    with pytest.raises(errors.MethodNotAllowed, match="takes GET, POST, not PUT"):
        Table().match("PUT", "/v1.0/a/volumes")
