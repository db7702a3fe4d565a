"""How the store is reached that the configuration names: a branch for each scheme."""

from __future__ import annotations

from typing import Any

from lunr.backup import stores
from lunr.common import files
from lunr.common.config import ConfigOpts
from lunr.common.errors import ConfigError


def store_options(conf: ConfigOpts) -> dict[str, Any]:
    """The options besides ``[store] url`` that :func:`stores.open_store` needs.

    Raises:
        ConfigError, errors.BadStoreURL: an option is missing or wrong.
    """
    scheme = stores.scheme(conf.store.url)
    if scheme == "files":
        return {}
    if not conf.swift.auth_url:
        raise ConfigError(reason="[swift] auth_url is not set")
    options = {name: conf.swift[name] for name in conf.swift if name != "key_file"}
    return {**options, "key": files.read(conf.swift.key_file, "[swift] key_file")}
