"""``lunr account``: accounts, their tokens and quotas."""

from __future__ import annotations

from typing import Any

import click

from lunr.client.cli.context import ClientContext
from lunr.client.cli.nouns import Noun, prints_record
from lunr.client.cli.options import ID, as_dict, confirm, json_option, timeout_option, yes_option
from lunr.client.cli.output import print_gone, print_list
from lunr.client.cli.progress import show_progress
from lunr.client.records import Account, Job, Token


class _Quota(click.ParamType[tuple[str, int | None]]):
    """``NAME=NUMBER`` or ``NAME=default``."""

    name = "quota"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int | None]:
        """The quota's name and its limit; None is the configured default."""
        name, _, limit = value.partition("=")
        if name and limit == "default":
            return name, None
        if name and limit.isascii() and limit.isdigit():
            return name, int(limit)
        return self.fail(f"{value!r} is not NAME=NUMBER or NAME=default", param, ctx)


_quotas = click.option(
    "--quota",
    "quotas",
    type=_Quota(),
    multiple=True,
    metavar="NAME=NUMBER",
    callback=lambda _ctx, _param, pairs: as_dict(pairs),
    help="Limit on volumes, gigabytes, snapshots or backups; `default` for the configured one.",
)


@click.group()
def account() -> None:
    """Manage accounts, their tokens and quotas (needs the role admin).

    \b
    Examples:
      lunr account create shop --quota volumes=20 --quota gigabytes=500
      lunr account token create shop
      lunr account collect shop
    """


_noun = Noun(account, Account, lambda client: client.admin.accounts)
_noun.add_list("List accounts.", lambda client: client.admin.accounts.list)
_noun.add_show("Show an account and its quotas; - stands for the configured default.")


@account.command()
@click.argument("account_id", metavar="ACCOUNT", type=ID)
@_quotas
@prints_record
def create(
    context: ClientContext, account_id: str, quotas: dict[str, int | None] | None
) -> Account:
    """Make an account; to use it somebody needs a token of it."""
    return context.client.admin.accounts.create(account_id, quotas=quotas)


@account.command()
@click.argument("account_id", metavar="ACCOUNT", type=ID)
@_quotas
@prints_record
def update(
    context: ClientContext, account_id: str, quotas: dict[str, int | None] | None
) -> Account:
    """Change an account's quotas."""
    if quotas is None:
        raise click.UsageError("Nothing to change: give --quota.")
    return context.client.admin.accounts.update(account_id, quotas=quotas)


@account.command()
@click.argument("account_id", metavar="ACCOUNT", type=ID)
@yes_option
@json_option
@click.pass_obj
def delete(context: ClientContext, account_id: str, yes: bool, as_json: bool) -> None:
    """Delete an account that has nothing any more, with its tokens."""
    confirm(f"Delete account {account_id}?", yes)
    context.client.admin.accounts.delete(account_id)
    print_gone("account", account_id, as_json)


@account.command()
@click.argument("account_id", metavar="ACCOUNT", type=ID)
@click.option(
    "--wait/--no-wait", default=True, help="Return when the work is over, or at once.  [wait]"
)
@timeout_option
@prints_record
def collect(context: ClientContext, account_id: str, wait: bool, timeout: float | None) -> Job:
    """Remove from the store what no backup of an account needs any more, now."""
    admin = context.client.admin
    if not wait:
        return admin.collect(account_id)
    return show_progress(
        f"collection of {account_id}",
        lambda progress: admin.collect(account_id, wait=True, timeout=timeout, progress=progress),
        "lunr job list --all-accounts",
    )


@account.group()
def token() -> None:
    """Make and delete the tokens of an account.

    \b
    Examples:
      lunr account token create shop
      lunr account token create shop --role admin
      lunr account token delete shop TOKEN
    """


@token.command("list")
@click.argument("account_id", metavar="ACCOUNT", type=ID)
@json_option
@click.pass_obj
def token_list(context: ClientContext, account_id: str, as_json: bool) -> None:
    """List an account's tokens, without their secrets."""
    print_list(context.client.admin.tokens.list(account_id), Token.columns, as_json)


@token.command("create")
@click.argument("account_id", metavar="ACCOUNT", type=ID)
@click.option(
    "--role",
    type=click.Choice(["member", "admin"]),
    default="member",
    help="admin: good in every account.  [member]",
)
@prints_record
def token_create(context: ClientContext, account_id: str, role: str) -> Token:
    """Make a token. Its secret, `token`, is shown only now."""
    return context.client.admin.tokens.create(account_id, role=role)


@token.command("delete")
@click.argument("account_id", metavar="ACCOUNT", type=ID)
@click.argument("token_id", metavar="TOKEN", type=ID)
@yes_option
@json_option
@click.pass_obj
def token_delete(
    context: ClientContext, account_id: str, token_id: str, yes: bool, as_json: bool
) -> None:
    """Delete a token by its id (not its secret): from now on it opens nothing."""
    confirm(f"Delete token {token_id}?", yes)
    context.client.admin.tokens.delete(account_id, token_id)
    print_gone("token", token_id, as_json)
