"""The commands `upscale` and `evaluate`: parse, call, print."""

from __future__ import annotations

import os
import time
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fedvsr.cli import completion
from fedvsr.cli.common import (
    ModelOption,
    ModelSetOption,
    ResultsOption,
    console,
    interruptible,
    print_wide,
    say,
)
from fedvsr.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedvsr.inference.scores import ClipScore
    from fedvsr.inference.scoring import Degrading
    from fedvsr.inference.streaming import Compute
    from fedvsr.inference.trained import Trained

# Commands import the modules that load torch, so that `--help` stays quick.

TileOption = Annotated[
    str | None,
    typer.Option(
        "--tile",
        metavar="FRAMES[xSIZE]",
        help="Frames and low-resolution pixels of a tile, e.g. 16x128; whole frames without xSIZE. "
        "Default: chosen to fit the memory.",
    ),
]
MemoryOption = Annotated[
    str | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        help="Memory limit, e.g. 8GiB. Default: the GPU's free memory, or half of the system's.",
    ),
]
DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda"], typer.Option("--device", help="Device that computes.")
]
PrecisionOption = Annotated[
    Literal["fp32", "bf16", "fp16"], typer.Option("--precision", help="Precision of the network.")
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, max=256, help="CPU threads (default: all).")
]


def upscale(
    source: Annotated[
        str, typer.Argument(metavar="VIDEO_OR_FOLDER", help="A video, or a folder of pictures.")
    ],
    checkpoint: Annotated[
        str,
        typer.Option(
            "--checkpoint",
            metavar="RUN_OR_FILE",
            help="A run's id, the start of its id, its folder, `latest`, or a file of weights.",
            autocompletion=completion.runs,
        ),
    ],
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            metavar="FILE_OR_FOLDER",
            help="Output: a .mp4, .mov or .mkv file, or a folder or NAME%05d.png for pictures. "
            "Default: NAME_x4 beside the input.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing output.")
    ] = False,
    model: ModelOption = None,
    settings: ModelSetOption = None,
    results: ResultsOption = Path("results"),
    tile: TileOption = None,
    memory: MemoryOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "fp32",
    threads: ThreadsOption = None,
    crf: Annotated[
        int, typer.Option("--crf", min=0, max=63, help="Quality of the video; 0 is best.")
    ] = 14,
    codec: Annotated[str, typer.Option("--codec", help="Encoder of the video.")] = "libx264",
    fps: Annotated[
        str,
        typer.Option("--fps", metavar="RATE", help="Frames per second, if the input is a folder."),
    ] = "25",
    sound: Annotated[
        bool, typer.Option("--sound/--no-sound", help="Copy the input's sound.")
    ] = True,
    bits: Annotated[
        int | None,
        typer.Option(
            "--bits",
            metavar="8|10|12|16",
            help="Bits per sample: up to 12 in a video, 8 or 16 in pictures. Default: the input's.",
        ),
    ] = None,
    deinterlace: Annotated[
        bool,
        typer.Option("--deinterlace", help="Make progressive frames of an interlaced video first."),
    ] = False,
) -> None:
    """Super-resolve a video or a folder of pictures with a trained network."""
    from fedvsr.cli.views import FramesView
    from fedvsr.data.encode import VideoCodec
    from fedvsr.data.frames import open_clip
    from fedvsr.inference.trained import find_trained
    from fedvsr.inference.upscale import choose_output
    from fedvsr.inference.upscale import upscale as enlarge
    from fedvsr.models.origin import licence_note

    compute = _compute(tile, memory, device, precision, threads)
    clip = open_clip(Path(source), _rate(fps))
    trained = find_trained(checkpoint, results, model, settings or ())
    scale = trained.spec.scale
    output = choose_output(
        clip, scale, out, sound, VideoCodec(codec, crf), overwrite, bits, deinterlace
    )
    started = time.monotonic()
    try:
        with interruptible(), FramesView(console) as view:
            view.say(f"{trained.origin}; x{scale} on {_device_name(compute)}, {precision}")
            if trained.weights_source:
                view.say(licence_note(trained.weights_source))
            progress = view.begin(clip.path.name)
            done = enlarge(trained, clip, output, compute, progress, view.say)
    except KeyboardInterrupt:
        say(f"\nstopped; {output.path} is not written")
        raise typer.Exit(130) from None
    wall_s = time.monotonic() - started
    say(
        f"{output.path}: {done} frames of {clip.width * scale} x {clip.height * scale} in "
        f"{wall_s:.1f} s, {done / wall_s:.3g} frames/s"
    )


def evaluate(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_FILE",
            help="A run's id, the start of its id, its folder, `latest`, or a file of weights.",
            autocompletion=completion.runs,
        ),
    ],
    gt: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[GT]...",
            help="Ground truth: videos, picture folders, or folders of these. "
            "Default: the clips that the run held out, scored as in training.",
        ),
    ] = None,
    lq: Annotated[
        list[str] | None,
        typer.Option(
            "--lq",
            metavar="LQ",
            help="Low-resolution clips; repeatable. Default: made from GT by bicubic.",
        ),
    ] = None,
    degrade: Annotated[
        str | None,
        typer.Option(
            "--degrade",
            metavar="PIPELINES",
            help="How to make them from GT, as data.degradation is written: compressed, or "
            "'{clean: bi, noisy: blur_noise}'; with a run's degradation_seed.",
        ),
    ] = None,
    metrics: Annotated[
        str,
        typer.Option(
            "--metrics",
            metavar="LIST",
            help="Metrics to score beside PSNR and SSIM, separated by commas: lpips, dists, vmaf, "
            "tof. A run's own are scored too.",
        ),
    ] = "",
    weights: Annotated[
        str | None,
        typer.Option(
            "--metric-weights",
            metavar="DIR",
            help="Folder with AlexNet's and VGG16's weights, for lpips and dists. "
            "Default: torchvision's, which it downloads.",
        ),
    ] = None,
    max_frames: Annotated[
        int | None,
        typer.Option("--max-frames", min=1, help="Frames scored from the start of each clip."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE.parquet", help="File to write the table to."),
    ] = None,
    model: ModelOption = None,
    settings: ModelSetOption = None,
    results: ResultsOption = Path("results"),
    tile: TileOption = None,
    memory: MemoryOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "fp32",
    threads: ThreadsOption = None,
) -> None:
    """Score a trained network on a test set, beside bicubic enlargement."""
    from fedvsr.cli.scores import scores_table
    from fedvsr.cli.views import FramesView, PreparationView
    from fedvsr.inference import scoring
    from fedvsr.inference.scores import scored_part
    from fedvsr.inference.trained import find_trained

    if out is not None:
        _require_table(out)
    chosen = _chosen(metrics)
    if weights is not None:
        _require_folder(weights)
    trained = find_trained(checkpoint, results, model, settings or ())
    compute, part = _compute(tile, memory, device, precision, threads), ""
    if gt:
        if lq and degrade is not None:
            raise UserError("--lq and --degrade both say what is enlarged; leave one out")
        degrading = _degrading(degrade, trained)
        clips = scoring.find_clips(gt, lq or (), trained.spec.scale, max_frames, degrading)
    else:
        if degrade is not None:
            raise UserError("--degrade needs ground truth to make frames of; name it before it")
        if lq:
            raise UserError("--lq needs ground truth to compare with; name it before --lq")
        with PreparationView(console) as preparation:
            clips, own = scoring.held_out(trained, preparation, max_frames)
        chosen = [*dict.fromkeys((*own.metrics, *chosen))]
        weights = weights or own.metric_weights
        compute, part = scoring.as_in_training(compute, own, threads), scored_part(own.crop)
    scores: list[ClipScore] = []
    with FramesView(console) as view:
        view.say(f"{trained.origin}; x{trained.spec.scale} on {_device_name(compute)}, {precision}")
        for score in scoring.evaluate(
            trained,
            clips,
            compute,
            metrics=chosen,
            weights=weights,
            begin=view.begin,
            say=view.say,
        ):
            scores.append(score)
    print_wide(scores_table(scores, part))
    if out is not None:
        _write(out, trained, compute, scores)
        say(f"{out}")


def _degrading(text: str | None, trained: Trained) -> Degrading | None:
    """What `--degrade` asks for."""
    from fedvsr import yaml12
    from fedvsr.inference.scoring import Degrading

    if text is None:
        return None
    degradation = yaml12.load(text, "--degrade")
    if not isinstance(degradation, str | list | dict):
        raise UserError(f"--degrade {text}: give the name of a pipeline, or steps")
    data = trained.config.data if trained.config is not None else None
    return Degrading(degradation, data.degradation_seed if data is not None else 0)


def _chosen(text: str) -> list[str]:
    """The names of a list of metrics."""
    from fedvsr.lookup import did_you_mean
    from fedvsr.metrics import OPTIONAL

    names = [*dict.fromkeys(name.strip() for name in text.split(",") if name.strip())]
    for name in names:
        if name not in OPTIONAL:
            raise UserError(
                f"--metrics {text!r}: {name} is not one of them{did_you_mean(name, OPTIONAL)} "
                f"(there are: {', '.join(OPTIONAL)}; PSNR and SSIM are always scored)"
            )
    return names


def _require_folder(weights: str) -> None:
    if not Path(weights).is_dir():
        raise UserError(f"--metric-weights {weights}: there is no such folder")


def _require_table(out: Path) -> None:
    from fedvsr.inference.upscale import require_name

    require_name(out)
    folder = out.resolve().parent
    if out.suffix != ".parquet" or not folder.is_dir():
        raise UserError(f"--out {out}: name a .parquet file in an existing folder")
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; name a .parquet file")
    if not os.access(folder, os.W_OK):
        raise UserError(f"--out {out}: the folder {folder} cannot be written to")


def _write(out: Path, trained: Trained, compute: Compute, scores: Sequence[ClipScore]) -> None:
    from fedvsr import __version__
    from fedvsr.environment import git_commit
    from fedvsr.schemas import write_scores

    common = {
        "checkpoint": trained.name,
        "origin": trained.origin,
        "scale": trained.spec.scale,
        "device": _device_name(compute),
        "precision": compute.precision,
        "fedvsr_version": __version__,
        "git_commit": git_commit(),
    }
    write_scores(out, [common | score.row() for score in scores])


def _compute(
    tile: str | None,
    memory: str | None,
    device: Literal["auto", "cpu", "cuda"],
    precision: Literal["fp32", "bf16", "fp16"],
    threads: int | None,
) -> Compute:
    import torch

    from fedvsr.inference.memory import parse_bytes
    from fedvsr.inference.streaming import Compute, parse_tile

    if threads is not None:
        torch.set_num_threads(threads)
    compute = Compute(
        device=device,
        precision=precision,
        tiles=parse_tile(tile) if tile is not None else None,
        memory_bytes=parse_bytes(memory) if memory is not None else None,
    )
    # Raises for a missing GPU, before anything is read.
    _ = compute.torch_device
    return compute


def _device_name(compute: Compute) -> str:
    import torch

    return torch.cuda.get_device_name() if compute.torch_device.type == "cuda" else "CPU"


def _rate(fps: str) -> Fraction:
    try:
        rate = Fraction(fps)
        if rate > 0:
            return rate
    except (ValueError, ZeroDivisionError):
        pass
    raise UserError(f"--fps {fps} is not a rate; write e.g. 25, 29.97 or 30000/1001")
