"""``lunr-manage``: the operator's tool for tasks before or without the API.

It works on the database directly, with the services of the API, and on the store
and the keys with the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from lunr.api.services.pagination import Query
from lunr.common import errors
from lunr.common.help import HELP
from lunr.db import migrate
from lunr.manage import keys, records
from lunr.manage.context import Context, command, show, write_private

T = TypeVar("T")

#: The volume type of volumes whose creator names none.
DEFAULT_TYPE = "default"


@click.group(context_settings=HELP)
@click.option(
    "--config-file",
    "files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False),
    help="Configuration, as for lunr-api.  [/etc/lunr/lunr.conf]",
)
@click.pass_context
def main(context: click.Context, files: tuple[str, ...]) -> None:
    """Set up lunr: keys, the database, the first account, the storage nodes.

    \b
    A new installation:
      lunr-manage key make /etc/lunr/master.key
      lunr-manage key make /etc/lunr/secret.key
      lunr-manage database upgrade
      lunr-manage account create default
      lunr-manage token create default --role admin
      lunr-manage node create node1
    """
    context.obj = Context(files or ("/etc/lunr/lunr.conf",))


main.add_command(keys.key)
main.add_command(records.rebuild)
main.add_command(records.record)


# --- the database -------------------------------------------------------------------


@main.group()
def database() -> None:
    """The database's schema."""


@database.command()
@command
def upgrade(context: Context) -> None:
    """Bring the database to the schema of this version; a new one is made."""
    migrate.upgrade(context.conf.database.connection)


@database.command()
@command
def check(context: Context) -> None:
    """Say whether the database can be used by this version (exit code 1: it can't)."""
    _ = context.services
    click.echo("The database is ready.")


# --- accounts, tokens, nodes --------------------------------------------------------


@main.group()
def account() -> None:
    """Accounts: the owners of volumes."""


@account.command("create")
@click.argument("id")
@command
def account_create(context: Context, id: str) -> None:
    """Make the account ID."""
    show(context.services.accounts.create(id))


@account.command("list")
@command
def account_list(context: Context) -> None:
    """List the accounts."""
    show(context.services.accounts.list(Query())["accounts"])


@main.group()
def token() -> None:
    """Tokens: a caller's X-Auth-Token."""


@token.command("create")
@click.argument("account")
@click.option("--role", type=click.Choice(["member", "admin"]), default="member")
@command
def token_create(context: Context, account: str, role: str) -> None:
    """Make a token of ACCOUNT and print it; it can't be shown again."""
    show(context.services.tokens.create(account, role))


@token.command("list")
@click.argument("account")
@command
def token_list(context: Context, account: str) -> None:
    """List the tokens of ACCOUNT (not their secrets)."""
    show(context.services.tokens.list(account)["tokens"])


@token.command("revoke")
@click.argument("account")
@click.argument("token_id")
@command
def token_revoke(context: Context, account: str, token_id: str) -> None:
    """Make a token worthless, within seconds."""
    context.services.tokens.revoke(account, token_id)


@main.group()
def node() -> None:
    """Storage nodes."""


@node.command("create")
@click.argument("id")
@click.option("--volume-type", "types", multiple=True, default=[DEFAULT_TYPE], show_default=True)
@click.option("--token-file", type=click.Path(dir_okay=False, path_type=Path))
@command
def node_create(context: Context, id: str, types: tuple[str, ...], token_file: Path | None) -> None:
    """Make the storage node ID; its token is written to --token-file, or printed."""
    made = context.services.nodes.create(id, volume_types=list(types))
    if token_file:
        write_private(token_file, made.pop("token") + "\n")
    show(made)


@node.command("list")
@command
def node_list(context: Context) -> None:
    """List the storage nodes."""
    show(context.services.nodes.list(Query())["nodes"])


# --- all at once ---------------------------------------------------------------------


@main.command()
@click.option("--account", required=True, help="The account to make.")
@click.option("--node", required=True, help="The storage node to make.")
@click.option("--url", required=True, help="Where the API will answer.")
@click.option("--openrc", required=True, type=click.Path(dir_okay=False, path_type=Path))
@command
def bootstrap(context: Context, account: str, node: str, url: str, openrc: Path) -> None:
    """Make all that a first start needs, unless it exists: can be repeated.

    That is the keys, the database, the volume type `default`, an account, a storage node with
    its token in [node] token_file, and an openrc file with an admin's token.
    """
    conf = context.conf
    for file in (keys.path_of(context), Path(conf.api.secret_key_file)):
        if file is not None:
            keys.make_key(file)
    migrate.upgrade(conf.database.connection)
    _create_missing(context.services.volume_types.create, DEFAULT_TYPE)
    _create_missing(context.services.accounts.create, account)
    token_file = Path(conf.node.token_file)
    if not token_file.exists():
        made = _create_missing(context.services.nodes.create, node, volume_types=[DEFAULT_TYPE])
        made = made or context.services.tokens.create_for_node(node)
        write_private(token_file, made["token"] + "\n")
    secret = _openrc_token(openrc) or context.services.tokens.create(account, "admin")["token"]
    text = f"export LUNR_URL={url}\nexport LUNR_ACCOUNT={account}\nexport LUNR_TOKEN={secret}\n"
    write_private(openrc, text)


def _create_missing(create: Callable[..., T], *args: Any, **kwargs: Any) -> T | None:
    try:
        return create(*args, **kwargs)
    except errors.IdInUse:
        return None


def _openrc_token(openrc: Path) -> str | None:
    """The token in the openrc file of an earlier bootstrap."""
    if openrc.exists():
        for line in openrc.read_text().splitlines():
            if line.startswith("export LUNR_TOKEN="):
                return line.partition("=")[2]
    return None


if __name__ == "__main__":
    main()
