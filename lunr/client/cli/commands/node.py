"""``lunr node``."""

from __future__ import annotations

import click

from lunr.client.cli.context import ClientContext
from lunr.client.cli.nouns import Noun, prints_record
from lunr.client.cli.options import ID, confirm, json_option, yes_option
from lunr.client.cli.output import print_gone
from lunr.client.records import Node

_weight = click.option("--weight", type=click.IntRange(min=0), help="More: gets more volumes.")
_group = click.option("--group", help="Nodes that may fail together, such as those of a rack.")
_types = click.option(
    "--type", "volume_types", multiple=True, help="A volume type it takes; can be given again."
)


@click.group()
def node() -> None:
    """Manage storage nodes (needs the role admin).

    \b
    Examples:
      lunr node create node2 --type default --type fast --group rack-b
      lunr node update node2 --status MAINTENANCE
    """


_noun = Noun(node, Node, lambda client: client.admin.nodes)
_noun.add_list("List storage nodes.", lambda client: client.admin.nodes.list)
_noun.add_show("Show a storage node.")


@node.command()
@click.argument("node_id", metavar="NODE", type=ID)
@_weight
@_group
@_types
@prints_record
def create(
    context: ClientContext,
    node_id: str,
    weight: int | None,
    group: str | None,
    volume_types: tuple[str, ...],
) -> Node:
    """Make a node known. Its token is shown only now: put it in the node's token_file."""
    nodes, types = context.client.admin.nodes, list(volume_types) or None
    return nodes.create(node_id, weight=weight, group=group, volume_types=types)


@node.command()
@click.argument("node_id", metavar="NODE", type=ID)
@_weight
@_group
@_types
@click.option(
    "--status",
    type=click.Choice(["ACTIVE", "MAINTENANCE"]),
    help="MAINTENANCE: it gets no new volumes.",
)
@prints_record
def update(
    context: ClientContext,
    node_id: str,
    weight: int | None,
    group: str | None,
    volume_types: tuple[str, ...],
    status: str | None,
) -> Node:
    """Change a node; --type replaces all its types."""
    if weight is None and group is None and not volume_types and status is None:
        raise click.UsageError("Nothing to change: give --weight, --group, --type or --status.")
    nodes, types = context.client.admin.nodes, list(volume_types) or None
    return nodes.update(node_id, weight=weight, group=group, volume_types=types, status=status)


@node.command()
@click.argument("node_id", metavar="NODE", type=ID)
@click.option(
    "--force", is_flag=True, help="The node is lost, and its volumes and snapshots with it."
)
@yes_option
@json_option
@click.pass_obj
def delete(context: ClientContext, node_id: str, force: bool, yes: bool, as_json: bool) -> None:
    """Forget a node that has no volumes any more; its token opens nothing from then on."""
    also = " and all volumes and snapshots on it" if force else ""
    confirm(f"Delete node {node_id}{also}?", yes)
    context.client.admin.nodes.delete(node_id, force=force)
    print_gone("node", node_id, as_json)
