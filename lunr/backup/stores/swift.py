"""A store in OpenStack Swift: one container a repository.

All threads share one login. When its token expires (Keystone's by default after an hour), the
first thread that Swift refuses logs in again, and the others use the new token.
keystoneauth logs in to Keystone, because swiftclient can't distinguish a wrong password from a
Keystone that is down.

An answer counts only if it has the headers of Swift: a load balancer, a firewall or a captive
portal may answer any request with a page of its own, also with the status 200 or 404.
Such an answer says nothing about the objects; the request is repeated, as after a 503.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import requests
import urllib3

from lunr.backup import errors
from lunr.backup.format.names import Buffer
from lunr.backup.stores.base import AT_ONCE, Slot, Store, read_retry_after
from lunr.common.openstack import APPLICATION_CREDENTIAL


@contextlib.contextmanager
def _without(name: str) -> Iterator[None]:
    """Make the import of a module fail, unless it was imported already."""
    sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # None: the import fails
    try:
        yield
    finally:
        if sys.modules[name] is None:
            del sys.modules[name]


# swiftclient imports keystoneclient and its dependencies if they are installed. That takes most
# of the start time of a process, and lunr does not use that login.
with _without("keystoneclient"):
    import swiftclient
    from swiftclient.exceptions import ClientException

_PAGE = 10000
#: The content type of objects that are stored without one.
_OBJECT = "application/octet-stream"
#: The account's URL, and a token for it.
_Login = tuple[str, str]


class _Connection(swiftclient.Connection):  # type: ignore[misc]  # it has no types
    """A connection of swiftclient with a login that it shares with others.

    `log_in` gets the login that Swift refused, or None at first.
    """

    def __init__(self, log_in: Callable[[_Login | None], _Login], **options: Any) -> None:
        super().__init__(retries=0, **options)
        self._log_in = log_in
        self._last: _Login | None = None

    def get_auth(self) -> _Login:
        """Called by swiftclient before the first request, and after an answer of 401."""
        self._last = self._log_in(self._last)
        return self._last


class SwiftStore(Store):
    """Objects in the container `container`, which is created if it is missing.

    This class renews expired tokens; :class:`lunr.backup.stores.base.Retrying` makes all other
    retries.
    """

    # Swift's operator sets the interval of the container updaters; half an hour is many rounds.
    lag: ClassVar[float] = 1800.0
    # A proxy gives up on its object servers within node_timeout and its tries.
    settle: ClassVar[float] = 60.0
    in_order: ClassVar[bool] = True

    def __init__(self, container: str, options: Mapping[str, Any]) -> None:
        """Use `container` with the connection options of swiftclient.Connection in `options`."""
        self._container = container
        self._options = options
        self._lock = threading.Lock()
        self._connections: dict[threading.Thread, swiftclient.Connection] = {}
        self._login: _Login | None = None

    def _connection(self) -> swiftclient.Connection:
        """The calling thread's connection. Those of ended threads are closed."""
        connection = self._connections.get(threading.current_thread())
        if connection is None:
            connection = _Connection(self._log_in, **self._options)
            with self._lock:
                for thread in [other for other in self._connections if not other.is_alive()]:
                    self._connections.pop(thread).close()
                self._connections[threading.current_thread()] = connection
        return connection

    def _log_in(self, refused: _Login | None) -> _Login:
        """The login of all threads; a new one if Swift `refused` the present one."""
        with self._lock:
            if self._login is None or self._login == refused:
                with self._errors():
                    self._login = self._ask()
            return self._login

    def _ask(self) -> _Login:
        options = self._options
        if options["auth_version"] not in swiftclient.client.AUTH_VERSIONS_V1:
            return self._ask_keystone()
        where = {name: options[name] for name in ("cacert", "timeout")}
        try:
            login: _Login = swiftclient.client.get_auth(
                options["authurl"], options["user"], options["key"], auth_version="1", **where
            )
        except ClientException as error:
            if error.http_status not in (401, 403):
                raise
            raise self._refused(f"{error.http_reason} ({error.http_status}).") from error
        return login

    def _ask_keystone(self) -> _Login:
        try:  # imported here: it is an extra
            from keystoneauth1 import exceptions, identity
            from keystoneauth1.session import Session
        except ImportError as error:
            raise self._refused(f"Keystone needs lunr's extra keystone ({error}).") from error
        options, scope = self._options, dict(self._options["os_options"])
        region, interface = scope.pop("region_name", None), scope.pop("interface", "public")
        credential = scope.pop("application_credential_id", None)
        auth_type = scope.pop("auth_type", "password")
        for domain in ("user_domain", "project_domain"):
            if f"{domain}_id" in scope:
                scope.pop(f"{domain}_name", None)
        if "project_id" in scope:  # enough: other domains may have a project of that name
            for name in ("project_name", "project_domain_id", "project_domain_name"):
                scope.pop(name, None)
        plugin: identity.BaseIdentityPlugin
        if auth_type == APPLICATION_CREDENTIAL:
            plugin = identity.V3ApplicationCredential(
                options["authurl"], options["key"], application_credential_id=credential
            )
        elif not {"project_id", "project_name"} & scope.keys():
            # Keystone would give a token without rights.
            raise self._refused("no project is named ([swift] project_name or OS_PROJECT_NAME).")
        elif options["auth_version"] in swiftclient.client.AUTH_VERSIONS_V2:
            plugin = identity.V2Password(
                options["authurl"],
                username=options["user"],
                password=options["key"],
                tenant_name=scope.get("project_name"),
                tenant_id=scope.get("project_id"),
            )
        else:
            plugin = identity.Password(
                options["authurl"], username=options["user"], password=options["key"], **scope
            )
        try:
            with requests.Session() as http:
                verify, timeout = options["cacert"] or True, options["timeout"]
                access = plugin.get_access(Session(session=http, verify=verify, timeout=timeout))
            url = access.service_catalog.url_for(
                service_type="object-store", interface=interface, region_name=region
            )
        except (
            *(exceptions.BadRequest, exceptions.Unauthorized, exceptions.Forbidden),
            *(exceptions.NotFound, exceptions.CatalogException),
        ) as error:
            raise self._refused(f"Keystone says: {error}.") from error
        except exceptions.ClientException as error:
            raise errors.StoreUnavailable(
                store=f"swift:{self._container}", reason=f"Keystone: {error}."
            ) from error
        return str(url), str(access.auth_token)

    def _refused(self, reason: str) -> errors.StoreRefused:
        return errors.StoreRefused(store=f"swift:{self._container}", reason=reason)

    @contextlib.contextmanager
    def _errors(self, name: str = "") -> Iterator[None]:
        store = f"swift:{self._container}"
        try:
            yield
        except ClientException as error:
            status = error.http_status or 0
            reason = f"{error.http_reason or error.msg} ({status or 'no answer'})."
            if not _is_from_swift(error):
                raise self._not_swift(reason) from error
            if status == 404 and name:
                raise errors.ObjectMissing(name=name) from error
            if status in (507, 413):
                raise errors.StoreFull(store=store, reason=reason) from error
            # 401: the login is fresh, so Swift can't reach the service that checks tokens.
            if status in (0, 401, 404, 408, 409, 422, 429, 498, 499) or status >= 500:
                unavailable = errors.StoreUnavailable(store=store, reason=reason)
                unavailable.retry_after = _retry_after(error)
                raise unavailable from error
            raise self._refused(reason) from error
        # swiftclient reads the connection directly, so that urllib3's errors come through.
        except (OSError, requests.RequestException, urllib3.exceptions.HTTPError) as error:
            # An answer broke off: its rest must not be read as the next answer.
            self._reset_connection()
            raise errors.StoreUnavailable(store=store, reason=f"{error}.") from error
        except ValueError as error:  # a listing that is no JSON
            raise self._not_swift(f"{error}.") from error

    def _not_swift(self, reason: str) -> errors.StoreUnavailable:
        return errors.StoreUnavailable(
            store=f"swift:{self._container}", reason=f"what answered is not Swift: {reason}"
        )

    def _reset_connection(self) -> None:
        connection = self._connections.get(threading.current_thread())
        if connection is not None:
            connection.close()
            connection.http_conn = None

    def put(
        self,
        name: str,
        *buffers: Buffer,
        durable: bool = False,  # noqa: ARG002
        slot: Slot = AT_ONCE,
    ) -> None:
        """See :meth:`Store.put`. Swift checks the MD5 of the object that arrived."""
        data = b"".join(buffers)
        etag = hashlib.md5(data, usedforsecurity=False).hexdigest()
        connection = self._connection()
        with slot, self._errors():
            for attempt in (1, 2):
                try:
                    stored = connection.put_object(self._container, name, data, etag=etag)
                    break
                except ClientException as error:
                    if error.http_status != 404 or attempt == 2:
                        raise
                    connection.put_container(self._container)
        if stored != etag:
            raise errors.StoreUnavailable(
                store=f"swift:{self._container}", reason=f"{name} did not arrive whole."
            )

    def get(self, name: str, offset: int = 0, length: int | None = None) -> Buffer:
        """See :meth:`Store.get`."""
        if length == 0:
            return b""
        headers = {}
        if offset or length is not None:
            last = "" if length is None else offset + length - 1
            headers["Range"] = f"bytes={offset}-{last}"
        connection = self._connection()
        response: dict[str, Any] = {}
        with self._errors(name):
            try:
                answer, data = connection.get_object(
                    self._container, name, headers=headers, response_dict=response
                )
            except ClientException as error:
                # There is nothing from `offset` on.
                if error.http_status == 416 and _is_from_swift(error):
                    return b""
                raise
        kind = answer.get("content-type", _OBJECT)
        if kind != _OBJECT and not {"etag", "x-timestamp"} <= answer.keys():
            raise self._not_swift(f"the answer for {name} is {kind}, without ETag or X-Timestamp.")
        if headers and response["status"] != 206:
            raise self._not_swift(f"all of {name} came where a part was asked for.")
        if len(data) != int(answer.get("content-length", len(data))):
            self._reset_connection()
            raise errors.StoreUnavailable(
                store=f"swift:{self._container}", reason=f"{name} was truncated on its way."
            )
        return bytes(data)

    def delete(self, name: str) -> None:
        """See :meth:`Store.delete`."""
        connection = self._connection()
        response: dict[str, Any] = {}
        with contextlib.suppress(errors.ObjectMissing), self._errors(name):
            connection.delete_object(self._container, name, response_dict=response)
            if response["status"] != 204:
                raise self._not_swift(f"the deletion of {name} was answered {response['status']}.")

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """See :meth:`Store.list`, in order of name, as of some moments ago."""
        connection = self._connection()
        marker = ""
        while True:
            try:
                with self._errors(f"container {self._container}"):
                    _, entries = connection.get_container(
                        self._container, prefix=prefix, marker=marker, limit=_PAGE
                    )
                    page = _read_page(entries)
            except errors.ObjectMissing:
                return
            yield from page
            if not page:
                return
            if page[-1][0] <= marker:  # it would go on for ever
                raise self._not_swift("a page of the listing begins before the last one ended.")
            marker = page[-1][0]

    def containers(self, prefix: str) -> tuple[str, ...]:
        """The names of the account's containers that begin with `prefix`."""
        connection = self._connection()
        with self._errors():
            _, containers = connection.get_account(prefix=prefix, full_listing=True)
        return tuple(container["name"] for container in containers)

    def sync(self) -> None:
        """See :meth:`Store.sync`: Swift answers a PUT when a majority of replicas have it."""

    def close(self) -> None:
        """See :meth:`Store.close`."""
        with self._lock:
            for connection in self._connections.values():
                connection.close()


def _is_from_swift(error: ClientException) -> bool:
    """Whether an answer that swiftclient makes an error of is Swift's own.

    Its pages come with the id of the transaction; no answer at all, or one without a page, may
    be its own.
    """
    status = error.http_status or 0
    if 200 <= status < 300:  # such as a login without the URL of an account
        return False
    names = {name.lower() for name in error.http_response_headers or {}}
    return (
        status not in (404, 416)
        or not error.http_response_content
        or not names.isdisjoint(("x-trans-id", "x-openstack-request-id"))
    )


def _retry_after(error: ClientException) -> float | None:
    """The seconds after which Swift wants to be asked again (RFC 9110, section 10.2.3)."""
    for name, value in (error.http_response_headers or {}).items():
        if name.lower() == "retry-after":
            return read_retry_after(value)
    return None


def _read_page(entries: Any) -> list[tuple[str, int]]:
    """Name and size of each object in the answer to a listing.

    Raises:
        ValueError: it is no listing of Swift's.
    """
    if not isinstance(entries, list):
        raise ValueError("a listing is no list")  # noqa: TRY004 - it is an answer's, not a caller's
    page = []
    for entry in entries:
        match entry:
            case {"name": str(name), "bytes": int(size)} if size >= 0:
                page.append((name, size))
            case _:
                raise ValueError("an entry of a listing has no name or size")
    return page
