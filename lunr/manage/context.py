"""The context, errors and output of all commands of ``lunr-manage``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import click

from lunr.api.services import Services
from lunr.common import config, errors
from lunr.common import files as private
from lunr.db import migrate

P = ParamSpec("P")


@dataclass
class Context:
    """The configuration, and the services on its database."""

    files: tuple[str, ...]

    @cached_property
    def conf(self) -> config.ConfigOpts:
        """The configuration."""
        return config.load([f"--config-file={file}" for file in self.files], "lunr-manage")

    @cached_property
    def services(self) -> Services:
        """The services, on a database that has the schema they need."""
        services = Services.of(self.conf)
        migrate.check(services.context.db)
        return services


def command(function: Callable[Concatenate[Context, P], None]) -> Callable[P, None]:
    """Pass the command its context, and print lunr's errors as one line."""

    @wraps(function)
    def run(context: Context, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(context, *args, **kwargs)
        except errors.LunrError as error:
            raise click.ClickException(str(error)) from error

    return click.pass_obj(run)


def show(value: Any) -> None:
    """Print `value` as JSON."""
    click.echo(json.dumps(value, indent=1))


def write_private(file: Path, text: str) -> None:
    """Write a file that only its owner can read."""
    try:
        private.write(file, text)
    except OSError as error:
        raise click.ClickException(f"{file} can't be written: {error.strerror}") from error
