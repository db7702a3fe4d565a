"""What makes the client of the `lunr` command: its options, the environment, an openrc file."""

from __future__ import annotations

import logging
import os
import shlex
import stat
from functools import cached_property
from pathlib import Path

from lunr.client.client import Client
from lunr.common.errors import ConfigError

#: 1.2 seconds in all: a mistyped URL should be an error soon.
_RETRIES = 3


class ClientContext:
    """The options before the command, and the client made of them when a command needs it.

    Each of URL, account and token is taken from the option, else from the openrc file,
    else from the environment.
    """

    def __init__(self, url: str | None, account: str | None, openrc: Path | None) -> None:
        self._options = {"LUNR_URL": url, "LUNR_ACCOUNT": account}
        self._openrc = openrc

    @cached_property
    def _env(self) -> dict[str, str]:
        env = dict(os.environ)
        if self._openrc is not None:
            env.update(read_openrc(self._openrc))
        env.update({name: value for name, value in self._options.items() if value is not None})
        return env

    @property
    def has_service(self) -> bool:
        """Whether the URL of a service is set.

        Raises:
            ConfigError: the openrc file can't be read.
        """
        return bool(self._env.get("LUNR_URL"))

    @cached_property
    def client(self) -> Client:
        """The client.

        Raises:
            ConfigError: something is missing or can't be read.
        """
        # An error that lasts becomes an exception; urllib3 would warn of each attempt.
        logging.getLogger("urllib3").setLevel(logging.ERROR)
        return Client.from_env(self._env, retries=_RETRIES)

    def close(self) -> None:
        """Close the client's connections, if it was needed."""
        if "client" in self.__dict__:
            self.client.close()


def read_openrc(path: Path) -> dict[str, str]:
    """The ``NAME=value`` lines of a shell file (``export`` before them is skipped).

    Raises:
        ConfigError: the file can't be read or parsed, or its mode lets others read the token.
    """
    try:
        with path.open() as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read()
        words = shlex.split(text, comments=True)
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or an open quote
        raise ConfigError(reason=f"{path}: {error}") from error
    if mode & 0o077:
        raise ConfigError(
            reason=f"{path} holds a token and others may read it: run `chmod 600 {path}`"
        )
    pairs = [word.split("=", 1) for word in words if word != "export"]
    if bad := [number for number, pair in enumerate(pairs, 1) if len(pair) != 2]:
        raise ConfigError(reason=f"{path}: word {bad[0]} is not NAME=value")
    return dict(pairs)
