"""`hush webhook`: addresses that are told when jobs end."""

from __future__ import annotations

from typing import Annotated

import typer

from service.cli.options import AsJson, Home, Limit, Url
from service.cli.session import print_json, print_json_list, session

app = typer.Typer(no_args_is_help=True, help="Have addresses told of changes to jobs. Takes the token of an admin.")

Webhook = Annotated[str, typer.Argument(metavar="ID", help="Id of the webhook, as `hush webhook list` shows it.")]


@app.command("create")
def create_command(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="Where to send, e.g. https://example.org/hush.")],
    *,
    states: Annotated[
        list[str] | None,
        typer.Option("--state", help="Tell of changes to this state; repeatable.", show_default="those that end a job"),
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
    home: Home = None,
) -> None:
    """Register a webhook, and print its secret: nothing shows it again.

    What is sent is signed as Standard Webhooks has it: any of its libraries verifies it with the secret.

    Example: hush webhook create https://example.org/hush --state failed --state cancelled
    """
    from service.cli.screen import job_state

    with session(url, home) as client:
        made = client.create_webhook(address, [job_state(state) for state in states] if states else None)
    if as_json:
        print_json(made)
    else:
        typer.echo(f"{made.id}: tells {made.url} of {', '.join(made.states)}; verify by this secret:", err=True)
        typer.echo(made.secret)


@app.command("list")
def list_command(*, as_json: AsJson = False, url: Url = None, home: Home = None) -> None:
    """List webhooks."""
    from service.cli.screen import console, plain_table

    with session(url, home) as client:
        webhooks = client.webhooks()
    if as_json:
        print_json_list(webhooks)
        return
    table = plain_table("id", "address", "states")
    for webhook in webhooks:
        table.add_row(webhook.id, webhook.url, ", ".join(webhook.states))
    console().print(table)


@app.command("delete")
def delete_command(webhook: Webhook, *, url: Url = None, home: Home = None) -> None:
    """Tell a webhook nothing more, not even what it has not heard yet."""
    with session(url, home) as client:
        client.delete_webhook(webhook)
    typer.echo(f"{webhook} is deleted")


@app.command("deliveries")
def deliveries_command(
    webhook: Webhook, *, limit: Limit = 20, as_json: AsJson = False, url: Url = None, home: Home = None
) -> None:
    """Show what a webhook was told, newest first, and what went wrong."""
    from itertools import islice

    from service.cli.screen import console, plain_table

    with session(url, home) as client:
        deliveries = list(islice(client.deliveries(webhook, page=min(limit, 100)), limit))
    if as_json:
        print_json_list(deliveries)
        return
    table = plain_table("delivery", "job", "became", "status", "tries", "last error", right=("delivery", "tries"))
    for told in deliveries:
        error = told.last_error or ""
        table.add_row(str(told.id), told.job_id, told.job_state, told.status, str(told.num_tries), error)
    console().print(table)
