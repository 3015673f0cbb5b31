"""Commands that list what can be configured: `algorithms`, `models`, `presets` and `config`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from fedvsr.cli.common import SetOption, SourceArgument, console


def algorithms(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print docs/reference/algorithms.md.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NETWORK[:SIZE]",
            help="List instead what a client receives and sends in a round with this network, by "
            "each algorithm's defaults.",
        ),
    ] = None,
) -> None:
    """List the federated algorithms, and what each costs."""
    from fedvsr.algorithms import COLUMNS, reference, rows

    if model is not None:
        from fedvsr.models import named
        from fedvsr.training.roles import TRAFFIC_COLUMNS, traffic_rows

        _print(TRAFFIC_COLUMNS, traffic_rows(named(*model.split(":", 1))))
        return
    if markdown:
        sys.stdout.write(reference())
        return
    _print(COLUMNS, rows())


def models(
    parts: Annotated[
        bool,
        typer.Option("--parts", help="List the parts of each network, with their parameters."),
    ] = False,
) -> None:
    """List the networks, and what their training samples must have."""
    from fedvsr.models import COLUMNS, PART_COLUMNS, part_rows, rows

    if parts:
        _print(PART_COLUMNS, part_rows())
    else:
        _print(COLUMNS, rows())


def _print(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(*columns, box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for row in rows:
        table.add_row(*row)
    console.print(table)


def presets() -> None:
    """List the packaged experiments."""
    from fedvsr.settings import presets as packaged

    table = Table(box=None, pad_edge=False, show_header=False)
    for name, description in packaged().items():
        table.add_row(Text(name, style="bold"), description)
    console.print(table)


def show_config(
    source: SourceArgument = "demo",
    settings: SetOption = None,
    schema: Annotated[
        bool,
        typer.Option(
            "--schema", help="Print the JSON schema, from which editors complete settings."
        ),
    ] = False,
) -> None:
    """Print an experiment's complete configuration as YAML."""
    import json

    from fedvsr.config import ExperimentConfig, load_config

    if schema:
        text = json.dumps(ExperimentConfig.model_json_schema(), indent=2)
    else:
        text = load_config(source, settings or ()).to_yaml().rstrip()
    typer.echo(text)
