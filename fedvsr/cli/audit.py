"""The command `audit`: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedvsr.cli.common import ResultsOption, RunArgument, console, interruptible, print_wide, say
from fedvsr.errors import UserError
from fedvsr.files import require_folder
from fedvsr.run_names import find_folder

# The command imports what loads torch, so that `--help` stays quick.


def audit(
    run: RunArgument,
    client: Annotated[
        int | None,
        typer.Option("--client", min=0, help="Client to attack. Default: the round's first."),
    ] = None,
    round_idx: Annotated[
        int | None,
        typer.Option("--round", min=1, help="Round to attack. Default: the last possible one."),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            "--cases",
            metavar="LIST",
            help="Cases to attack, separated by commas, e.g. plain,clip. Default: all.",
        ),
    ] = None,
    crop: Annotated[
        int, typer.Option("--crop", min=8, max=512, help="Side of the frame in a small step.")
    ] = 32,
    iterations: Annotated[
        int, typer.Option("--iterations", min=1, max=1_000_000, help="Iterations of a start.")
    ] = 600,
    starts: Annotated[
        int, typer.Option("--starts", min=1, max=100, help="Starts; the best match is kept.")
    ] = 1,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Seed of the starts and of the noise.")
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder to write to. Default: audit/RUN."),
    ] = None,
    results: ResultsOption = Path("results"),
) -> None:
    """Reconstruct a client's frames from its update, with and without protection.

    It computes a client's update again and attacks it as a curious server can. What is written
    shows frames that the client trained on: keep it where the client's videos may be.
    """
    from fedvsr.attack.cases import attack, make_cases
    from fedvsr.attack.invert import Effort
    from fedvsr.attack.page import table, write_audit
    from fedvsr.attack.replay import rewind
    from fedvsr.cli.views import PreparationView, StepsView

    folder = find_folder(run, results)
    target = out if out is not None else Path("audit") / folder.resolve().name
    require_folder(target)
    with interruptible(), PreparationView(console) as cutting:
        replay = rewind(folder, round_idx, cutting)
    client_id = client if client is not None else next(iter(replay.recorded))
    replay.require_client(client_id)
    cases = make_cases(replay, client_id, crop)
    if only is not None:
        names = [name.strip() for name in only.split(",") if name.strip()]
        known = {case.name: case for case in cases}
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            raise UserError(
                f"--cases {only!r}: {unknown[0] if unknown else 'nothing'} is no case; give some "
                f"of {','.join(known)}"
            )
        cases = [known[name] for name in known if name in names]
    say(f"{replay.run_id}: client {client_id} in round {replay.round_idx}")
    effort = Effort(iterations, starts, seed)
    try:
        with interruptible(), StepsView() as view:
            found = list(attack(replay, client_id, cases, effort, view))
    except KeyboardInterrupt:
        say("stopped; nothing was written")
        raise typer.Exit(130) from None
    print_wide(table(found))
    for path in write_audit(target, replay, client_id, effort, found):
        say(str(path))
