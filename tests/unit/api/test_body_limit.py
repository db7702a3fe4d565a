"""How much of a body is read before it is refused."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest

from lunr.api.middleware.body_limit import NODE_LIMIT, BodyLimit
from lunr.common import errors

LIMIT = 1000


class Body(io.RawIOBase):
    """A body without an end, of which it is known how much was read."""

    taken = 0

    def read(self, size: int = -1) -> bytes:
        assert size >= 0, "all of it was asked for"
        self.taken += size
        return bytes(size)


def send(body: Body, role: str = "member", **headers: str) -> bytes:
    """What the application behind the limit reads."""

    def app(environ: dict[str, Any], _start: Any) -> list[bytes]:
        return [environ["wsgi.input"].read()]

    environ = {"wsgi.input": body, "lunr.principal": SimpleNamespace(role=role), **headers}
    return b"".join(BodyLimit(app, LIMIT)(environ, None))


def test_a_body_that_is_announced_as_too_large_is_not_read() -> None:
    body = Body()
    with pytest.raises(errors.BodyTooLarge):
        send(body, CONTENT_LENGTH=str(LIMIT + 1))
    assert body.taken == 0


def test_a_body_without_an_end_is_read_as_far_as_the_limit() -> None:
    body = Body()
    with pytest.raises(errors.BodyTooLarge):
        send(body, HTTP_TRANSFER_ENCODING="chunked")
    assert body.taken == LIMIT + 1


def test_a_body_that_is_just_not_too_large_is_read() -> None:
    assert send(Body(), CONTENT_LENGTH=str(LIMIT)) == bytes(LIMIT)


def test_a_node_may_send_more_but_not_what_it_likes() -> None:
    assert send(Body(), "node", CONTENT_LENGTH=str(LIMIT + 1)) == bytes(LIMIT + 1)
    body = Body()
    with pytest.raises(errors.BodyTooLarge):
        send(body, "node", CONTENT_LENGTH=str(NODE_LIMIT + 1))
    assert body.taken == 0
