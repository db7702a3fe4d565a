"""The addresses of this machine."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

#: For requests: use no proxy, whatever the environment says (requests ignores None here).
NO_PROXY = {"http": "", "https": ""}


def is_loopback(url: str) -> bool:
    """Whether a URL leads to this machine; such requests must not use a proxy.

    >>> is_loopback("http://127.0.0.1:8080"), is_loopback("http://[::1]/"), is_loopback("http://h/")
    (True, True, False)
    """
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")  # RFC 6761, section 6.3
