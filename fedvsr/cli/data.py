"""The commands of `fedvsr data` that look into clip stores: parse, call, print."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.filesize import decimal
from rich.table import Table

from fedvsr.cli import prepare
from fedvsr.cli.common import SetOption, SourceArgument, console, say
from fedvsr.cli.prepare import print_notes
from fedvsr.errors import UserError

if TYPE_CHECKING:
    pass

# Modules that load torch are imported inside the commands, so that `--help` is quick.

app = typer.Typer(help="Prepare data sets for training, and look into prepared ones.")
app.add_typer(prepare.app, name="prepare", no_args_is_help=True)

StoreArgument = Annotated[Path, typer.Argument(metavar="PATH", help="A clip store.")]


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
    print_notes(store)
    if clips:
        table = Table(box=None, pad_edge=False)
        for name in ("clip", "label", "frames", "size", "sha256"):
            table.add_column(name, justify="right" if name == "frames" else "left")
        for clip in store.clips:
            size = f"{clip.width} x {clip.height}"
            cells = (clip.clip_id, clip.label, str(clip.num_frames), size, clip.sha256[:16])
            table.add_row(*cells)
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
    from fedvsr.runs.launch import prepare_data, with_owners

    if plot is not None:
        _require_png(plot, "--plot")
    config = load_config(source, settings or ())
    with PreparationView(console) as view:
        split = with_owners(config, prepare_data(config, view), on_ray=False)
    table = Table(box=None, pad_edge=False)
    several = len({clip.degradation for clip in split.train}) > 1
    for name in ("client", "clips", "frames", "labels", *(["degradations"] if several else [])):
        table.add_column(name, justify="left" if name in ("labels", "degradations") else "right")
    for client_id, own in enumerate(split.clients):
        labels = Counter(clip.label for clip in own)
        frames = sum(clip.num_frames for clip in own)
        kinds = [_counts(Counter(clip.degradation for clip in own))] if several else []
        table.add_row(str(client_id), str(len(own)), f"{frames:,}", _counts(labels), *kinds)
    console.print(table)
    say(f"{len(split.train)} clips to train on, {split.num_test_clips} held out")
    if plot is not None:
        title = f"{config.name}: {config.data.partition}, seed {config.seed}"
        say(str(draw_partition(split.clients, title, plot)))


@app.command()
def degradations(
    source: SourceArgument,
    settings: SetOption = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="PNG", help="Also draw a test frame under each of them into this."
        ),
    ] = None,
) -> None:
    """Show what an experiment's degradations do to its first test clip; nothing is trained."""
    import numpy as np

    from fedvsr.cli.views import PreparationView
    from fedvsr.config import load_config
    from fedvsr.data.degraded import drawn
    from fedvsr.inference.evaluate import bicubic
    from fedvsr.metrics.fidelity import psnr
    from fedvsr.report.degraded import draw_degradations
    from fedvsr.runs.launch import prepare_data

    if plot is not None:
        _require_png(plot, "--plot")
    config = load_config(source, settings or ())
    with PreparationView(console) as view:
        split = prepare_data(config, view)
    clips = [clip for clip in split.test if clip.clip_id == split.test[0].clip_id]
    middle = clips[0].num_frames // 2
    gt = np.asarray(clips[0].gt()[middle])
    enlarged = {c.degradation: bicubic(c.lq()[middle : middle + 1], c.scale)[0] for c in clips}
    table = Table(box=None, pad_edge=False)
    table.add_column("degradation")
    table.add_column("bicubic", justify="right")
    table.add_column(f"steps, as drawn for {clips[0].clip_id}")
    for clip in clips:
        score = f"{psnr(enlarged[clip.degradation], gt):.2f} dB"
        table.add_row(clip.degradation, score, "\n".join(drawn(clip)) or "as prepared")
    console.print(table)
    if plot is not None:
        title = f"{clips[0].clip_id}, frame {middle}, x{clips[0].scale}"
        say(str(draw_degradations(clips, enlarged, title, plot)))


def _require_png(path: Path, option: str) -> None:
    if path.suffix.lower() != ".png" or not path.resolve().parent.is_dir():
        raise UserError(f"{option} {path} is not a .png file in an existing folder")


def _counts(counter: Counter[Any]) -> str:
    shown = [f"{count} of {value}" for value, count in counter.most_common(12)]
    more = len(counter) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
