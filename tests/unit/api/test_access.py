"""The line that each request has in the log."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from lunr.api.middleware.access import Access
from lunr.api.services.accounts.tokens import Principal


def line(caplog: pytest.LogCaptureFixture, principal: Principal | None, **environ: str) -> str:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if principal is not None:
            environ["lunr.principal"] = principal
        start_response("202 Accepted", [])
        return []

    request = {"REQUEST_METHOD": "DELETE", "PATH_INFO": "/v1.0/acme/volumes/v1", **environ}
    with caplog.at_level(logging.INFO, "lunr.access"):
        Access(app)({**request, "REMOTE_ADDR": "192.0.2.7"}, lambda *_: None)
    return caplog.messages[-1]


def test_it_says_who_did_what_from_where(caplog: pytest.LogCaptureFixture) -> None:
    said = line(caplog, Principal("token-1", "member", "acme", None))
    assert said.startswith("DELETE /v1.0/acme/volumes/v1 202 ")
    assert said.endswith("ms acme member token-1 192.0.2.7")
    assert line(caplog, Principal("token-2", "node", None, "n1")).endswith(
        "ms n1 node token-2 192.0.2.7"
    )
    assert line(caplog, None).endswith("ms - 192.0.2.7")


def test_a_stranger_decides_neither_its_length_nor_its_signs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    said = line(caplog, None, REQUEST_METHOD="\x1b[2J" + "M" * 7000, PATH_INFO="/\x1b" * 7000)
    assert "\x1b" not in said
    assert len(said) < 700
