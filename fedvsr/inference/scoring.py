"""Scores a trained network on a test set, or on the clips that its own run held out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, tee, zip_longest
from pathlib import Path

import numpy as np
import torch

from fedvsr.data.clips import Clip, Frames
from fedvsr.data.degrade import bicubic_downscale, quantise
from fedvsr.data.degrade_config import Degradation, Pipeline, pipelines, require_scale
from fedvsr.data.frames import Source, Video, clips_in, open_clip
from fedvsr.data.split import prepare
from fedvsr.data.testsets import folder_names, name_clips
from fedvsr.data.videos import Progress as VideoProgress
from fedvsr.errors import UserError
from fedvsr.inference.config import EvaluationConfig
from fedvsr.inference.evaluate import score_clip, scored_frames
from fedvsr.inference.scores import ClipScore
from fedvsr.inference.streaming import Compute, Progress, Say, super_resolve_stream
from fedvsr.inference.trained import Trained
from fedvsr.metrics.fidelity import MIN_SIDE

Pairs = Iterator[tuple[Frames, Frames]]


@dataclass(frozen=True)
class TestClip:
    """A test clip: ground truth beside low-resolution frames."""

    clip_id: str
    test_set: str
    num_frames: int
    """0 if unknown."""
    height: int
    """Height of the low-resolution frames."""
    width: int
    pairs: Callable[[], Pairs]
    """Reads ground truth and low-resolution frames from the start."""
    degradation: str = ""
    """How the low-resolution frames were made; empty if unknown."""
    notes: tuple[str, ...] = ()
    """What is not scored as it is in the files."""

    # Keeps pytest from collecting the class as a test.
    __test__ = False


@dataclass(frozen=True)
class Degrading:
    """How low-resolution frames are made of ground truth, as a run's test clips are.

    Raises:
        UserError: a pipeline is none, or does not suit the scale.
    """

    degradation: Degradation
    """See `data.degradation`."""
    seed: int = 0
    """See `data.degradation_seed`."""

    def pipelines(self, scale: int) -> dict[str, Pipeline]:
        """The pipelines by their names."""
        try:
            named = pipelines(self.degradation)
            require_scale(named, scale)
        except ValueError as error:
            raise UserError(f"--degrade: {error}") from None
        return named


def find_clips(
    gt: Sequence[str],
    lq: Sequence[str],
    scale: int,
    max_frames: int | None = None,
    degrading: Degrading | None = None,
) -> list[TestClip]:
    """Find the test clips that paths name: videos, picture folders, or folders of these.

    Clips of `gt` and `lq` are matched by name, or in order if names differ. Without `lq`,
    low-resolution frames are made from `gt`: under each degradation of `degrading`, by default by
    MATLAB's bicubic reduction, and quantised. The clips of each path of `gt` are a test set, named
    like those of `data.test`.

    Raises:
        UserError: a path holds no clip, or `gt` and `lq` do not match; see `Degrading`.
    """
    named = degrading.pipelines(scale) if degrading else {}
    found = [(name, path) for name in gt for path in clips_in(Path(name))]
    truths = [path for _, path in found]
    names = [path.resolve().name if path.is_dir() else path.stem for path in truths]
    if len({*names}) < len(names):
        names = [str(path) for path in truths]
    test_sets = dict[str, str]()
    for folder, label in zip(gt, folder_names(gt), strict=True):
        own = [name for name, (where, _) in zip(names, found, strict=True) if where == folder]
        test_sets |= name_clips(label, own)
    inputs: list[Path | None] = [None] * len(truths)
    if lq:
        lows = [path for name in lq for path in clips_in(Path(name))]
        by_name = {path.stem: path for path in lows}
        if all(path.stem in by_name for path in truths):
            inputs = [by_name[path.stem] for path in truths]
        elif len(lows) == len(truths):
            inputs = [*lows]
        else:
            raise UserError(
                f"there are {len(truths)} clips of ground truth and {len(lows)} of --lq, and their "
                "names differ; give --lq as many clips, or the same names"
            )
    clips = [
        _test_clip(name, test_sets[name], truth, low, scale, max_frames)
        for name, truth, low in zip(names, truths, inputs, strict=True)
    ]
    if not degrading:
        return clips
    return [
        replace(
            clip,
            pairs=partial(_degraded, truth, clip.clip_id, scale, max_frames, steps, degrading.seed),
            degradation=name,
        )
        for clip, truth in zip(clips, truths, strict=True)
        for name, steps in named.items()
    ]


def held_out(
    trained: Trained, progress: VideoProgress, max_frames: int | None = None
) -> tuple[list[TestClip], EvaluationConfig]:
    """The clips that a run held out, and its settings of scoring.

    Raises:
        UserError: `trained` is not a run, or its videos are missing.
    """
    if trained.config is None:
        raise UserError(f"{trained.name} is a file, not a run with test clips; name ground truth")
    config = trained.config.evaluation
    if max_frames is not None:
        config = config.model_copy(update={"max_frames": max_frames})
    split = prepare(trained.config.data, trained.config.seed, progress)
    clips = [_stored(clip, split.test_sets[clip.clip_id], config) for clip in split.test]
    return clips, config


def as_in_training(compute: Compute, config: EvaluationConfig, threads: int | None) -> Compute:
    """Use the tiles and threads of the run's own evaluator, unless the user sets others."""
    if threads is None:
        torch.set_num_threads(config.num_threads)
    if compute.tiles is not None or compute.memory_bytes is not None:
        return compute
    return replace(compute, tiles=config.tiles, blend="mean")


def evaluate(
    trained: Trained,
    clips: Sequence[TestClip],
    compute: Compute,
    *,
    metrics: Sequence[str] = (),
    weights: str | None = None,
    begin: Callable[[str], Progress],
    say: Say,
) -> Iterator[ClipScore]:
    """Score clips one by one; frames are streamed, so memory does not grow with a clip's length.

    Args:
        trained: the network.
        clips: the test clips.
        compute: the device, precision and tiles.
        metrics: the metrics to score beside PSNR and SSIM, by name.
        weights: the folder with the weights of metrics.
        begin: called with a clip's name; returns a function that is called with the frames done.
        say: called with a line on the tile, if it is chosen here.

    Raises:
        UserError: a clip cannot be read, or memory does not suffice.
    """
    for clip in clips:
        shape = clip.num_frames, clip.height, clip.width
        report = begin(clip.clip_id)
        for note in clip.notes:
            say(note)
        yield score_clip(
            clip.clip_id,
            clip.pairs(),
            lambda lq, shape=shape, report=report: _enlarged(  # type: ignore[misc]
                trained, lq, shape, compute, report, say
            ),
            trained.spec.scale,
            test_set=clip.test_set,
            degradation=clip.degradation,
            metrics=metrics,
            weights=weights,
        )


def _enlarged(
    trained: Trained,
    lq: Iterator[Frames],
    shape: tuple[int, int, int],
    compute: Compute,
    report: Progress,
    say: Say,
) -> Iterator[Frames]:
    frames = super_resolve_stream(trained.network, trained.spec, lq, shape, compute, report, say)
    return (np.asarray(rgb, np.uint8) for rgb in frames)


def _stored(clip: Clip, test_set: str, config: EvaluationConfig) -> TestClip:
    num_frames, height, width, _ = scored_frames(clip, config)[0].shape

    def pairs() -> Pairs:
        lq, gt = scored_frames(clip, config)
        return ((np.array(gt[t]), np.array(lq[t])) for t in range(num_frames))

    of_clip = (clip.clip_id, test_set, num_frames, height, width, pairs)
    return TestClip(*of_clip, degradation=clip.degradation)


def _test_clip(
    name: str, test_set: str, truth: Path, low: Path | None, scale: int, max_frames: int | None
) -> TestClip:
    gt = open_clip(truth)
    height, width = gt.height // scale, gt.width // scale
    if min(height, width) * scale < MIN_SIDE:
        raise UserError(f"{truth} is {gt.width} x {gt.height}; SSIM needs {MIN_SIDE} pixels a side")
    lq = open_clip(low) if low is not None else None
    if lq is not None and (lq.height, lq.width) != (height, width):
        raise UserError(
            f"{low} is {lq.width} x {lq.height}; for x{scale} and {truth} "
            f"({gt.width} x {gt.height}) it must be {width} x {height}"
        )
    num_frames = min(gt.num_frames, max_frames or gt.num_frames)
    notes = tuple(note for clip in (gt, lq) if clip is not None for note in _notes(clip))
    return TestClip(
        name,
        test_set,
        num_frames,
        height,
        width,
        lambda: _pairs(gt, lq, scale, max_frames),
        "bi" if lq is None else "",
        notes,
    )


def _notes(clip: Source) -> Iterator[str]:
    if clip.depth > 8:
        yield f"{clip.path}: {clip.depth} bits per sample are reduced to 8, and scored so"
    if isinstance(clip, Video) and clip.interlaced:
        yield f"{clip.path} is interlaced; its frames are used as they are"


def _pairs(gt: Source, lq: Source | None, scale: int, max_frames: int | None) -> Pairs:
    height, width = gt.height // scale * scale, gt.width // scale * scale
    with ExitStack() as stack:
        truths = _frames(gt, stack)
        if lq is None:
            for frame in islice(truths, max_frames):
                truth = frame[:height, :width]
                yield truth, quantise(bicubic_downscale(truth.astype(np.float32) / 255, scale))
            return
        both = zip_longest(truths, _frames(lq, stack))
        for index, (gt_frame, lq_frame) in enumerate(islice(both, max_frames)):
            if gt_frame is None or lq_frame is None:
                raise UserError(
                    f"{(gt if gt_frame is None else lq).path} ends after {index} frames, "
                    f"{(lq if gt_frame is None else gt).path} does not"
                )
            yield gt_frame[:height, :width], lq_frame


def _degraded(
    truth: Path, clip_id: str, scale: int, max_frames: int | None, steps: Pipeline, seed: int
) -> Pairs:
    """Ground truth beside what a pipeline makes of it, as the cached frames of a run are made."""
    # Loaded only if frames are to be made.
    from fedvsr.data.degrade_steps import draw, run_steps

    gt = open_clip(truth)
    height, width = gt.height // scale * scale, gt.width // scale * scale
    with ExitStack() as stack:
        whole = (frame[:height, :width] for frame in _frames(gt, stack))
        # A codec gives its first frame after some have gone in.
        truths, sources = tee(whole)
        lows = run_steps(sources, draw(steps, seed, clip_id), scale, seed, clip_id)
        yield from islice(zip(truths, stack.enter_context(closing(lows)), strict=False), max_frames)


def _frames(clip: Source, stack: ExitStack) -> Iterator[Frames]:
    """A clip's frames; its file is closed with the stack."""
    frames = stack.enter_context(closing(clip.frames()))
    return (np.asarray(rgb, np.uint8) for rgb, _ in frames)
