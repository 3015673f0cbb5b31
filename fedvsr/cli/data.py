"""The commands of `fedvsr data`, which make clip stores and look into them: parse, call, print."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from fedvsr.cli.common import SetOption, SourceArgument, console, interruptible, say
from fedvsr.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedvsr.data.clips import Store
    from fedvsr.data.prepare import Progress
    from fedvsr.data.recordings import Task
    from fedvsr.data.request import Request

# Modules that load torch are imported inside the commands, so that `--help` is quick.

app = typer.Typer(help="Prepare data sets for training, and look into prepared ones.")
prepare = typer.Typer(help="Make a clip store of a data set.")
app.add_typer(prepare, name="prepare", no_args_is_help=True)
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
        "--scale", min=2, max=8, help="Factor by which low-resolution frames are smaller."
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
StoreArgument = Annotated[Path, typer.Argument(metavar="PATH", help="A clip store.")]


@prepare.command()
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


@prepare.command()
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


@prepare.command()
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
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Seed of the random choice of clips.")
    ] = 0,
    scale: ScaleOption = 4,
    degradation: DegradationOption = "bi",
    overwrite: OverwriteOption = False,
    workers: WorkersOption = None,
) -> None:
    """Prepare Kinetics-400: a few clips of some classes, chosen at random."""
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
    _say_more(len(store.rejected), store)


@prepare.command()
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
def info(
    path: StoreArgument,
    clips: Annotated[bool, typer.Option("--clips", help="List every clip.")] = False,
) -> None:
    """Print a store's contents: clips, frames, sizes, bytes, labels and checksum."""
    from fedvsr.data import inspection

    store = inspection.require_store(path)
    sizes = Counter(f"{clip.width} x {clip.height}" for clip in store.clips)
    lengths = Counter(clip.num_frames for clip in store.clips)
    labels = Counter(clip.label for clip in store.clips)
    scales = sorted({clip.scale for clip in store.clips})
    rows = {
        "source": store.source,
        "low resolution": f"{', '.join(f'x{scale}' for scale in scales)} {store.degradation}",
        "clips": f"{len(store.clips):,}",
        "frames": f"{sum(clip.num_frames for clip in store.clips):,} ({_counts(lengths)})",
        "sizes": _counts(sizes),
        "data": decimal(sum(inspection.num_bytes(clip) for clip in store.clips)),
        "labels": f"{len(labels):,}: {_counts(labels)}",
        "checksum": inspection.fingerprint(store) if store.format > 1 else "none (format 1)",
    }
    for name, value in rows.items():
        say(f"{name:<15} {value}")
    for names in inspection.duplicates(store):
        say(f"{'same content':<15} {', '.join(names)}")
    _notes(store)
    if clips:
        table = Table(box=None, pad_edge=False)
        for name in ("clip", "label", "frames", "size", "sha256"):
            table.add_column(name, justify="right" if name == "frames" else "left")
        for clip in store.clips:
            size = f"{clip.width} x {clip.height}"
            cells = (clip.clip_id, clip.label, str(clip.num_frames), size, clip.sha256[:16])
            table.add_row(*map(escape, cells))
        console.print(table)


@app.command()
def verify(path: StoreArgument) -> None:
    """Compare every clip of a store with its checksums."""
    from fedvsr.cli.views import FramesView
    from fedvsr.data import inspection

    store = inspection.require_store(path)
    with FramesView(console) as view:
        wrong = inspection.verify(store, view.begin(f"verifying {path.name}"))
    for clip_id, fault in wrong.items():
        say(f"{clip_id}: {fault}")
    if wrong:
        raise UserError(
            f"{len(wrong)} of {len(store.clips)} clips of {path} differ from what was prepared; "
            "prepare them again"
        )
    say(f"{path}: {len(store.clips)} clips match their checksums")


@app.command()
def preview(
    path: StoreArgument,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE.png",
            help="Picture to write (default: PATH-preview.png beside the store).",
        ),
    ] = None,
    max_clips: Annotated[
        int,
        typer.Option(
            "--max-clips", min=1, help="Most clips on the sheet; of more, evenly spread ones."
        ),
    ] = 120,
) -> None:
    """Write a contact sheet with the middle frame, name and label of every clip."""
    from fedvsr.data import inspection

    store = inspection.require_store(path)
    whole = path.resolve()
    out = out or whole.with_name(f"{whole.name}-preview.png")
    _require_png(out, "--out")
    count = inspection.contact_sheet(store, out, max_clips=max_clips)
    say(f"{out}: {count} of {len(store.clips)} clips")


@app.command()
def partition(
    source: SourceArgument,
    settings: SetOption = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="PNG", help="Also draw clients by labels into this picture."
        ),
    ] = None,
) -> None:
    """Show how an experiment deals its clips to clients; nothing is trained."""
    from fedvsr.cli.views import PreparationView
    from fedvsr.config import load_config
    from fedvsr.report.partition import draw_partition
    from fedvsr.runs.launch import prepare_data

    if plot is not None:
        _require_png(plot, "--plot")
    config = load_config(source, settings or ())
    with PreparationView(console) as view:
        split = prepare_data(config, view)
    table = Table(box=None, pad_edge=False)
    for name in ("client", "clips", "frames", "labels"):
        table.add_column(name, justify="left" if name == "labels" else "right")
    for client_id, own in enumerate(split.clients):
        labels = Counter(clip.label for clip in own)
        frames = sum(clip.num_frames for clip in own)
        table.add_row(str(client_id), str(len(own)), f"{frames:,}", escape(_counts(labels)))
    console.print(table)
    say(f"{len(split.train)} clips to train on, {len(split.test)} held out")
    if plot is not None:
        title = f"{config.name}: {config.data.partition}, seed {config.seed}"
        say(str(draw_partition(split.clients, title, plot)))


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
    _notes(store)


@contextmanager
def _making(request: Request) -> Iterator[Progress]:
    """Show progress, then a summary, or after an interruption how to resume."""
    from fedvsr.cli.views import FramesView
    from fedvsr.data.clips import open_store
    from fedvsr.data.inspection import num_bytes

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


def _require_png(path: Path, option: str) -> None:
    if path.suffix.lower() != ".png" or not path.resolve().parent.is_dir():
        raise UserError(f"{option} {path} is not a .png file in an existing folder")


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
        table.add_row(*(escape(row[name]) for name in ("label", "video", "reason")))
    console.print(table)


def _notes(store: Store) -> None:
    for note in store.notes[:_LINES_SHOWN]:
        say(f"note: {note}")
    _say_more(len(store.notes), store)


def _say_more(count: int, store: Store) -> None:
    if count > _LINES_SHOWN:
        say(f"and {count - _LINES_SHOWN} more in {store.folder / 'manifest.json'}")


def _counts(counter: Counter[Any]) -> str:
    shown = [f"{count} of {value}" for value, count in counter.most_common(12)]
    more = len(counter) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


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
