"""Requests to the API: the token, retries, pages, and errors as exceptions."""

from __future__ import annotations

import http.cookiejar
import ipaddress
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies, select_proxy
from urllib3.util import Retry

from lunr import __version__
from lunr.client import errors
from lunr.common import ids, strict_json
from lunr.common.errors import ConfigError

#: Answers of a load balancer or a starting API; the same request may succeed a moment later.
_PASSING = (502, 503, 504)
#: Methods whose requests do the same when they are sent twice.
_IDEMPOTENT = ("GET", "PUT", "DELETE")
_MAX_BACKOFF = 5.0
_LARGEST_PAGE = 1000
#: For requests: ask no proxy, whatever the environment names (None would be left out of it).
_NO_PROXY = {"http": "", "https": ""}


class Transport:
    """Sends requests to one API as one token's owner. Threads may share it.

    Args:
        url: where the API is, ``http(s)://HOST[:PORT]``, perhaps with a path before ``/v1.0``.
        token: the secret of ``X-Auth-Token``; it is sent to `url` only and never logged.
        timeout: seconds to connect, and seconds in which the server may be silent.
        retries: how often a GET, PUT or DELETE that failed for a passing reason is sent
            again, with growing pauses; other requests only if they never reached the server.

    Raises:
        ConfigError: `url` or `token` can't be one.
    """

    def __init__(self, url: str, token: str, timeout: float, retries: int) -> None:
        self.url = _checked_url(url)
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise ConfigError(reason="the token is empty or holds characters that no token has")
        self.timeout = timeout
        #: For requests: none for this machine's own API; None: what the environment names.
        self._proxies = _NO_PROXY if _is_loopback(self.url) else None
        self._session = requests.Session()
        # A session of requests is not for threads because it gathers cookies. Without
        # them only its connection pool is shared, which is made for threads.
        self._session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
        self._session.headers.update(
            {
                "X-Auth-Token": token,
                "Accept": "application/json",
                "User-Agent": f"lunr-client/{__version__}",
            }
        )
        retry = Retry(
            total=retries,
            status_forcelist=_PASSING,
            allowed_methods=_IDEMPOTENT,
            backoff_factor=0.2,
            backoff_max=_MAX_BACKOFF,
            raise_on_status=False,
            # A pause of an hour, at the server's wish, would look like a hang.
            respect_retry_after_header=False,
        )
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=retry, pool_maxsize=64))

    def __repr__(self) -> str:
        return f"<Transport {self.url}>"

    def close(self) -> None:
        """Close the connections that are kept open."""
        self._session.close()

    def request(
        self,
        method: str,
        *path: str,
        body: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Send one request and return the JSON object of its answer (empty for 204).

        Args:
            method: GET, POST, PUT or DELETE.
            path: the parts of the path after ``/v1.0``; each must be a well-formed id.
            body: sent as JSON, without the fields that are None.
            params: the query, without those that are None.

        Raises:
            InvalidField: a part of the path can't be an id; nothing was sent.
            ApiError: the server refused or failed; see its subclasses.
            Unreachable: no answer came, after all retries.
            BadAnswer: the answer is not one of lunr.
        """
        url = "/".join([self.url, "v1.0", *(ids.check(part) for part in path)])
        try:
            answer = self._session.request(
                method,
                url,
                json=None if body is None else _given(body),
                params=_given(params or {}),
                timeout=self.timeout,
                proxies=self._proxies,
                # A redirect would carry the token wherever it points.
                allow_redirects=False,
            )
        except requests.Timeout as error:
            cause = f"no answer within {self.timeout:g} seconds"
            raise errors.Unreachable(url=self.url, cause=cause) from error
        except requests.RequestException as error:
            cause = _root_cause(error)
            if self._proxies is None and (proxy := _proxy_of(url)):
                cause = f"{cause}, by the proxy {proxy}"
            raise errors.Unreachable(url=self.url, cause=cause) from error
        return _parsed(answer, self.url)

    def pages(
        self,
        key: str,
        *path: str,
        params: Mapping[str, Any] | None = None,
        limit: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        """The records of a list, named `key` in the answer; the next page is fetched when needed.

        Args:
            limit: how many records at most; None: all.

        Raises:
            as :meth:`request`.
        """
        query = {"limit": None if limit is None else min(limit, _LARGEST_PAGE), **(params or {})}
        return islice(self._all_pages(key, path, query), limit)

    def _all_pages(
        self, key: str, path: tuple[str, ...], query: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        while True:
            answer = self.request("GET", *path, params=query)
            records = answer.get(key)
            if not isinstance(records, list):
                raise errors.BadAnswer(url=self.url, what=f"a list without {key}")
            yield from records
            following = answer.get("next")
            if following is None:
                return
            if following == query.get("marker"):
                raise errors.BadAnswer(url=self.url, what="a page that is its own next page")
            query["marker"] = following


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    # requests would write a bool into a query as "True".
    return {name: value for name, value in values.items() if value is not None}


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for one that is no number
    except ValueError as error:
        raise ConfigError(reason=f"{url!r} is not a URL: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ConfigError(reason=f"{url!r} is not a URL such as http://127.0.0.1:8080")
    return url.rstrip("/")


def _is_loopback(url: str) -> bool:
    """Whether a URL leads to this machine alone. What does goes there, and to no proxy."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")  # RFC 6761, section 6.3


def _proxy_of(url: str) -> str:
    """The proxy that the environment names for a URL, without its password; or nothing."""
    proxy = select_proxy(url, get_environ_proxies(url))
    if not proxy:
        return ""
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _root_cause(error: BaseException) -> str:
    """The message of the innermost of the wrapped errors; the outer ones name Python objects."""
    seen = [error]
    while len(seen) < 10:
        outer = seen[-1]
        inner = getattr(outer, "reason", None)
        if not isinstance(inner, BaseException):
            inner = outer.args[0] if outer.args else None
        if not isinstance(inner, BaseException):
            inner = outer.__cause__ or outer.__context__
        if inner is None or inner in seen:
            break
        seen.append(inner)
    innermost = seen[-1]
    if isinstance(innermost, OSError) and innermost.strerror:
        return innermost.strerror
    return str(innermost) or type(innermost).__name__


def _parsed(answer: requests.Response, url: str) -> dict[str, Any]:
    if answer.status_code == 204:
        return {}
    try:
        body = strict_json.loads(answer.content)
    except ValueError:
        body = None
    if not isinstance(body, dict) or answer.status_code not in range(200, 600):
        raise errors.BadAnswer(url=url, what=f"HTTP {answer.status_code} without a JSON object")
    if answer.status_code < 300:
        return body
    if answer.status_code < 400 or "code" not in body:
        kind = answer.headers.get("Content-Type", "nothing")
        raise errors.BadAnswer(url=url, what=f"HTTP {answer.status_code} with {kind}")
    raise errors.from_answer(answer.status_code, body, answer.headers.get("X-Request-Id"))
