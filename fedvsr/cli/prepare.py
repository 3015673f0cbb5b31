"""The commands of `fedvsr data prepare`, which make clip stores: parse, call, print."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
import typer.core
from rich.filesize import decimal
from rich.table import Table

from fedvsr.cli.common import console, interruptible, say
from fedvsr.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedvsr.data.prepare import Progress
    from fedvsr.data.recordings import Task
    from fedvsr.data.request import Request
    from fedvsr.data.store import Store

# Modules that load torch are imported inside the commands, so that `--help` is quick.


class _Sources(typer.core.TyperGroup):
    """The packaged sources; what is none of them is one of the user's own."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command of a source, and the rest of the arguments."""
        if args and args[0] not in self.commands and _is_own(args[0]):
            args = ["own", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(help="Make a clip store of a data set.", cls=_Sources)
_LINES_SHOWN = 20

SourceOption = Annotated[
    Path,
    typer.Option(
        "--source", metavar="DIR", help="Folder of the data set, laid out as it is published."
    ),
]
OutOption = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="Folder of the new clip store.")
]
ScaleOption = Annotated[
    int,
    typer.Option(
        "--scale", min=1, max=8, help="Factor by which low-resolution frames are smaller."
    ),
]
DegradationOption = Annotated[
    Literal["bi", "bd"],
    typer.Option(
        "--degradation", help="bi: MATLAB's bicubic; bd: Gaussian blur, then every n-th pixel."
    ),
]
MakeLqOption = Annotated[
    bool,
    typer.Option("--make-lq", help="Make low-resolution frames even if the data set has them."),
]
OverwriteOption = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="Replace an existing store, or an unfinished one with other settings."
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers", min=1, help="Clips prepared at the same time (default: one per core)."
    ),
]


@app.command()
def reds(
    source: SourceOption,
    out: OutOption,
    scale: ScaleOption = 4,
    degradation: DegradationOption = "bi",
    clips: Annotated[
        list[str] | None,
        typer.Option(
            "--clip", metavar="ID", help="Prepare only this clip, e.g. 011, or reds4; repeatable."
        ),
    ] = None,
    frames: Annotated[
        int, typer.Option("--frames", min=1, help="Number of frames that every clip must have.")
    ] = 100,
    make_lq: MakeLqOption = False,
    overwrite: OverwriteOption = False,
    workers: WorkersOption = None,
) -> None:
    """Prepare REDS: train_sharp and val_sharp, regrouped into clips 000 to 269."""
    from fedvsr.data.config import REDS4
    from fedvsr.data.request import Request
    from fedvsr.data.sources import reds

    source, out = _paths(source, out)
    only = sorted({i for name in clips or () for i in (REDS4 if name == "reds4" else [name])})
    settings = {"directory": str(source), "clips": only, "frames": frames, "make_lq": make_lq}
    request = Request(out, "reds", scale, degradation, settings, ("clips",), overwrite)
    _prepare(
        request,
        lambda: reds.recordings(
            source,
            scale=scale,
            degradation=degradation,
            num_frames=frames,
            only=only,
            make_lq=make_lq,
        ),
        workers,
    )


@app.command()
def vid4(
    source: SourceOption,
    out: OutOption,
    scale: ScaleOption = 4,
    degradation: DegradationOption = "bi",
    make_lq: MakeLqOption = False,
    overwrite: OverwriteOption = False,
    workers: WorkersOption = None,
) -> None:
    """Prepare Vid4: GT and BIx4 (or BDx4), or the four clips' folders alone."""
    from fedvsr.data.request import Request
    from fedvsr.data.sources import vid4

    source, out = _paths(source, out)
    settings = {"directory": str(source), "make_lq": make_lq}
    request = Request(out, "vid4", scale, degradation, settings, (), overwrite)
    _prepare(
        request,
        lambda: vid4.recordings(source, scale=scale, degradation=degradation, make_lq=make_lq),
        workers,
    )


@app.command()
def kinetics(
    source: SourceOption,
    out: OutOption,
    annotations: Annotated[
        Path,
        typer.Option(
            "--annotations", metavar="CSV", help="Kinetics' official table of videos and classes."
        ),
    ],
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class", metavar="NAME", help="Class to use; repeatable (default: the paper's 40)."
        ),
    ] = None,
    clips_per_class: Annotated[
        int, typer.Option("--clips-per-class", min=1, help="Clips chosen from each class.")
    ] = 6,
    frames: Annotated[
        int, typer.Option("--frames", min=1, help="Frames kept from the start of each video.")
    ] = 100,
    size: Annotated[
        str, typer.Option("--size", metavar="WxH", help="Use only videos of this size.")
    ] = "1280x720",
    fps: Annotated[
        float | None, typer.Option("--fps", min=1, help="Use only videos of this frame rate.")
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Use only rows of this split, e.g. train.")
    ] = None,
    min_seconds: Annotated[
        float,
        typer.Option("--min-seconds", min=0, help="Use only videos that are at least this long."),
    ] = 0,
    order: Annotated[
        Literal["random", "table"],
        typer.Option(
            "--order", help="Try a class's rows at random by --seed, or as the table lists them."
        ),
    ] = "random",
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Seed of the random choice of clips.")
    ] = 0,
    scale: ScaleOption = 4,
    degradation: DegradationOption = "bi",
    overwrite: OverwriteOption = False,
    workers: WorkersOption = None,
) -> None:
    """Prepare Kinetics-400: a few clips of some classes."""
    from fedvsr.data.request import Request, existing
    from fedvsr.data.sources import kinetics

    source, out = _paths(source, out)
    width, height = _size(size)
    choice = kinetics.Choice(
        tuple(dict.fromkeys(classes or kinetics.CLASSES)),
        clips_per_class,
        frames,
        height,
        width,
        fps,
        split,
        seed,
        min_seconds,
        order,
    )
    table = str(annotations.resolve())
    settings = {"directory": str(source), "annotations": table, **choice.settings()}
    request = Request(out, "kinetics", scale, degradation, settings, kinetics.PICKS, overwrite)
    if _report_existing(existing(request)):
        return
    try:
        with _making(request) as progress:
            store = kinetics.prepare(request, source, annotations, choice, workers, progress)
    except kinetics.TooFewError as error:
        _rejected(error.rejected)
        raise
    _rejected(store.rejected[:_LINES_SHOWN])
    _print_more(len(store.rejected), store)


@app.command()
def folder(
    source: SourceOption,
    out: OutOption,
    scale: ScaleOption = 4,
    degradation: DegradationOption = "bi",
    clip_frames: Annotated[
        int | None,
        typer.Option(
            "--clip-frames",
            min=1,
            help="Frames per clip if recordings are cut; frames that remain are dropped.",
        ),
    ] = None,
    min_frames: Annotated[
        int, typer.Option("--min-frames", min=1, help="Stop if a recording has fewer frames.")
    ] = 2,
    overwrite: OverwriteOption = False,
    workers: WorkersOption = None,
) -> None:
    """Prepare your own videos and folders of pictures; a sub-folder's name is a label."""
    from fedvsr.data.request import Request
    from fedvsr.data.sources import folder

    source, out = _paths(source, out)
    settings = {"directory": str(source), "clip_frames": clip_frames, "min_frames": min_frames}
    request = Request(out, "folder", scale, degradation, settings, (), overwrite)
    _prepare(
        request,
        lambda: folder.recordings(source, clip_frames=clip_frames, min_frames=min_frames),
        workers,
    )


@app.command()
def own(
    plugin: Annotated[
        str, typer.Argument(metavar="FILE", help="A file (./mine.py) or an installed module.")
    ],
    source: SourceOption,
    out: OutOption,
    scale: ScaleOption = 4,
    degradation: DegradationOption = "bi",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="An argument of `recordings`; repeatable."),
    ] = None,
    overwrite: OverwriteOption = False,
    workers: WorkersOption = None,
) -> None:
    """Prepare a data set by code of your own; `own` may be left out: prepare ./mine.py."""
    import inspect

    from fedvsr import plugins
    from fedvsr.data.request import Request
    from fedvsr.data.sources import KIND
    from fedvsr.settings import parse_override

    source, out = _paths(source, out)
    found = plugins.find(KIND, {"name": plugins.beside(Path.cwd(), plugin)})
    if found is None:
        raise UserError(f"{plugin} is no data source (there are: {', '.join(KIND.known())})")
    recordings = found.module().recordings
    given = dict(parse_override(setting) for setting in settings or ())
    common = {"scale": scale, "degradation": degradation}
    try:
        inspect.signature(recordings).bind(source, **common, **given)
    except TypeError as error:
        raise UserError(f"{plugin}: recordings() {error}; see --set") from None
    recorded = {"directory": str(source), plugins.SHA256: found.sha256, **given}
    request = Request(out, found.name, scale, degradation, recorded, (), overwrite)
    _prepare(request, lambda: recordings(source, **common, **given), workers)


def _is_own(name: str) -> bool:
    from fedvsr import plugins
    from fedvsr.data.sources import KIND

    return plugins.is_file(name) or "." in name or name in KIND.known()


def _prepare(
    request: Request,
    find: Callable[[], tuple[list[Task], list[str]]],
    workers: int | None,
) -> None:
    from fedvsr.data.prepare import prepare as make
    from fedvsr.data.request import existing

    if _report_existing(existing(request)):
        return
    with _making(request) as progress:
        tasks, notes = find()
        store = make(request, tasks, notes, workers, progress)
    print_notes(store)


@contextmanager
def _making(request: Request) -> Iterator[Progress]:
    """Show progress, then a summary, or after an interruption how to resume."""
    from fedvsr.cli.views import FramesView
    from fedvsr.data.inspection import num_bytes
    from fedvsr.data.store import open_store

    started = time.monotonic()
    try:
        with interruptible(), FramesView(console) as view:
            yield view.begin(f"preparing {request.source}")
    except KeyboardInterrupt:
        say(f"\nstopped; repeat the command to resume {request.out}")
        raise typer.Exit(130) from None
    store = open_store(request.out)
    assert store is not None
    frames = sum(clip.num_frames for clip in store.clips)
    size = decimal(sum(num_bytes(clip) for clip in store.clips))
    say(
        f"{request.out}: {len(store.clips)} clips, {frames:,} frames, x{request.scale} "
        f"{request.degradation}, {size} in {time.monotonic() - started:.1f} s"
    )


def _report_existing(store: Store | None) -> bool:
    if store is not None:
        say(f"{store.folder} exists already: {len(store.clips)} clips")
    return store is not None


def _rejected(rows: Sequence[dict[str, str]]) -> None:
    if not rows:
        return
    table = Table(box=None, pad_edge=False, title="videos left out", title_justify="left")
    for name in ("class", "video", "reason"):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(row[name] for name in ("label", "video", "reason")))
    console.print(table)


def print_notes(store: Store) -> None:
    """Print the notes of a store, the first of them if there are many."""
    for note in store.notes[:_LINES_SHOWN]:
        say(f"note: {note}")
    _print_more(len(store.notes), store)


def _print_more(count: int, store: Store) -> None:
    """Print where the rest of `count` lines is, if not all were printed."""
    if count > _LINES_SHOWN:
        say(f"and {count - _LINES_SHOWN} more in {store.folder / 'manifest.json'}")


def _paths(source: Path, out: Path) -> tuple[Path, Path]:
    source, out = source.expanduser().resolve(), out.expanduser().resolve()
    if not source.is_dir():
        raise UserError(f"there is no folder {source} (--source)")
    if out == source or source in out.parents:
        raise UserError(f"--out {out} is inside the data set; choose a folder outside {source}")
    return source, out


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise UserError(f"--size {text} is not a size; write e.g. 1280x720")
    return int(width), int(height)
