"""The commands `tag` and `note`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedvsr.cli.common import OutOption, RunArgument, say
from fedvsr.errors import UserError
from fedvsr.run_names import find_folder

if TYPE_CHECKING:
    from fedvsr.labels import Labels

# The commands import what reads YAML, so that `--version` stays quick.


def tag(
    run: RunArgument,
    tags: Annotated[
        list[str] | None, typer.Argument(metavar="[TAG]...", help="Tags, such as paper or table-2.")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take these tags from the run.")] = False,
    out: OutOption = Path("results"),
) -> None:
    """Give a run tags, or print those that it has; `fedvsr list --tag TAG` finds it by them."""
    from fedvsr.labels import add_tags, read_labels, remove_tags

    folder = find_folder(run, out)
    if not tags:
        if remove:
            raise UserError("--remove: name the tags to take from the run")
        labels = read_labels(folder)
    else:
        labels = (remove_tags if remove else add_tags)(folder, tags)
    say(f"{folder.name}: {', '.join(labels.tags) or 'no tags'}")


def note(
    run: RunArgument,
    text: Annotated[
        str | None, typer.Argument(metavar="[TEXT]", help="The note; it replaces an earlier one.")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Delete the note.")] = False,
    out: OutOption = Path("results"),
) -> None:
    """Write a note about a run, or print it; `fedvsr show RUN` prints it too."""
    from fedvsr.labels import read_labels, write_note

    folder = find_folder(run, out)
    if remove and text is not None:
        raise UserError("--remove deletes the note; leave TEXT out")
    if remove or text is not None:
        labels = write_note(folder, text or "")
        say(f"{folder.name}: {'note written' if labels.note else 'no note'}")
    else:
        say(read_labels(folder).note or f"{folder.name}: no note")


def lines(labels: Labels) -> list[str]:
    """The lines that show labels; none if there are none."""
    shown = [f"tags: {', '.join(labels.tags)}"] if labels.tags else []
    return [*shown, f"note: {labels.note}"] if labels.note else shown
