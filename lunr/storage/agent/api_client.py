"""What a storage node says to the API (docs/api.md, "For storage nodes")."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any

import requests

from lunr import __version__
from lunr.common import errors, ids, strict_json

#: Seconds for a request that does not wait for anything.
_TIMEOUT = 15.0


class ApiClient:
    """The API as one node sees it. Any thread may use it.

    Every method raises errors.Unavailable when the API can't be reached or is
    in trouble, and errors.RemoteError with the API's code when it refuses.
    """

    def __init__(self, url: str, node_id: str, token: str) -> None:
        self._base = f"{url.rstrip('/')}/v1.0/nodes/{ids.check(node_id, 'node.id')}"
        self._token = token
        self._local = threading.local()

    def heartbeat(self, report: Mapping[str, Any]) -> None:
        """Say that the node lives, and what it has."""
        self._call("PUT", "", report)

    def reconcile(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """Say what is on the node; learn what ought to be. Voids all leases of the node."""
        return self._call("POST", "/reconcile", found) or {}

    def exports(self) -> list[dict[str, Any]]:
        """The exports that must be there now, with their credentials."""
        return list((self._call("GET", "/exports") or {}).get("exports", []))

    def claim(self, kinds: Iterable[str], wait: int, lease: str) -> dict[str, Any] | None:
        """A job of one of `kinds`, or None if there was none for `wait` seconds.

        Args:
            lease: a fresh id; the same again when the answer did not come.
        """
        body = {"kinds": list(kinds), "lease": lease}
        return self._call("POST", f"/jobs/claim?wait={wait}", body, timeout=wait + _TIMEOUT)

    def update(self, job_id: str, lease: str, **fields: Any) -> dict[str, Any]:
        """Renew the lease, and report on the job; returns whether to ``cancel`` it, and the like.

        Raises:
            errors.StaleLease: the job is not this node's any more.
        """
        path = f"/jobs/{ids.check(job_id, 'job.id')}"
        return self._call("PUT", path, {"lease": lease, **fields}) or {}

    def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        timeout: float = _TIMEOUT,
    ) -> dict[str, Any] | None:
        try:
            answer = self._session().request(method, self._base + path, json=body, timeout=timeout)
            content = strict_json.loads(answer.content) if answer.content else None
        except (requests.RequestException, ValueError) as error:
            raise errors.Unavailable(what="the API", reason=str(error)) from error
        if answer.ok:
            return content if isinstance(content, dict) else None
        told = content if isinstance(content, dict) else {}
        code, reason = str(told.get("code", "")), str(told.get("reason", answer.reason))
        if code == errors.StaleLease.code:
            raise errors.StaleLease(id=path.rpartition("/")[2])
        if answer.status_code >= 500:
            raise errors.Unavailable(what="the API", reason=f"{answer.status_code} {reason}")
        raise errors.RemoteError(code or f"http_{answer.status_code}", reason)

    def _session(self) -> requests.Session:
        # requests does not promise that threads can share a session.
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = requests.Session()
            session.trust_env = False  # no proxy, no .netrc that would replace the token
            session.headers["X-Auth-Token"] = self._token
            session.headers["User-Agent"] = f"lunr-storage/{__version__}"
        return session
