"""Scores networks on test clips, beside bicubic enlargement."""

from __future__ import annotations

import io
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from PIL import Image

from fedvsr import models
from fedvsr.data.clips import Clip, Frames
from fedvsr.data.degrade import bicubic_upscale, quantise
from fedvsr.determinism import scoped_torch
from fedvsr.heap import return_freed
from fedvsr.inference.config import EvaluationConfig
from fedvsr.inference.scores import ClipScore, Scored
from fedvsr.inference.tiling import super_resolve
from fedvsr.metrics import BICUBIC
from fedvsr.metrics.meter import Meter
from fedvsr.models.spec import ModelConfig
from fedvsr.params import FloatVector, load_flat
from fedvsr.training.requirements import model_spec


class Evaluator:
    """Scores parameter vectors on fixed clips; the bicubic baseline is computed once.

    Args:
        model: the network's settings.
        config: what is scored, and how.
        clips: the test clips.
        test_sets: the test set of each clip, by its id.
    """

    def __init__(
        self,
        model: ModelConfig,
        config: EvaluationConfig,
        clips: Sequence[Clip],
        test_sets: Mapping[str, str],
    ) -> None:
        self.spec = model_spec(model)
        self.config = config
        self.clips, self.test_sets = clips, test_sets
        self.network = models.build_fresh(model).eval()
        if torch.cuda.is_available():
            self.network.cuda()
        # By clips, not by their ids: a clip may be scored under several degradations.
        self._baseline = dict[Clip, dict[str, float]]()
        self._pictured = set[Clip]()
        self._times = Counter(clip.clip_id for clip in clips)

    @property
    def device_name(self) -> str:
        """`CPU`, or the name of the GPU."""
        return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"

    def score(self, params: FloatVector, pictures: bool = True) -> Scored:
        """Score each test clip with the parameters (P,).

        Args:
            params: the network's parameters.
            pictures: whether to give a frame of each clip too.
        """
        began = time.perf_counter()
        load_flat(self.network, params)
        scores, files = list[ClipScore](), dict[str, bytes]()
        with scoped_torch(0, self.config.num_threads):
            for clip in self.clips:
                score, sr = self._score(clip)
                scores.append(score)
                if pictures:
                    files |= self._files(clip, sr)
        return_freed()
        return Scored(scores=scores, pictures=files, wall_s=time.perf_counter() - began)

    def _score(self, clip: Clip) -> tuple[ClipScore, Frames]:
        """A clip's score, and its super-resolved frames."""
        lq, gt = scored_frames(clip, self.config)
        if clip not in self._baseline:
            self._baseline[clip] = self._compare(bicubic(lq, clip.scale), gt)
        sr = super_resolve(self.network, self.spec, lq, self.config.tiles)
        values = self._compare(sr, gt)
        score = ClipScore(
            clip_id=clip.clip_id,
            test_set=self.test_sets[clip.clip_id],
            num_frames=len(gt),
            degradation=clip.degradation,
            values=_beside(values, self._baseline[clip]),
        )
        return score, sr

    def _files(self, clip: Clip, sr: Frames) -> dict[str, bytes]:
        """Pictures of a clip's middle frame, by the names of their files."""
        middle = len(sr) // 2
        kinds = {"sr": sr[middle]}
        if clip not in self._pictured:
            self._pictured.add(clip)
            lq, gt = scored_frames(clip, self.config)
            kinds["bicubic"] = bicubic(lq[middle : middle + 1], clip.scale)[0]
            kinds["gt"] = gt[middle]
        several = self._times[clip.clip_id] > 1
        name = f"{clip.clip_id}@{clip.degradation}" if several else clip.clip_id
        return {f"{name}_{middle:03d}_{kind}.png": _png(frame) for kind, frame in kinds.items()}

    def _compare(self, sr: Frames, gt: Frames) -> dict[str, float]:
        with Meter(self.config.metrics, self.config.metric_weights) as meter:
            for sr_frame, gt_frame in zip(sr, gt, strict=True):
                meter.add(sr_frame, gt_frame)
            return meter.means()


def _png(frame: Frames) -> bytes:
    """A frame (H, W, 3) as a PNG file, compressed little: that takes a third of the time."""
    file = io.BytesIO()
    Image.fromarray(frame).save(file, format="png", compress_level=1)
    return file.getvalue()


def _beside(values: Mapping[str, float], of_bicubic: Mapping[str, float]) -> dict[str, float]:
    return {**values, **{BICUBIC + name: value for name, value in of_bicubic.items()}}


def scored_frames(clip: Clip, config: EvaluationConfig) -> tuple[Frames, Frames]:
    """Low-resolution frames and ground truth of the part of a test clip that is scored.

    Both are memory-mapped.
    """
    first = slice(0, config.max_frames)
    lq, gt = clip.lq()[first], clip.gt()[first]
    if config.crop is not None:
        rows, columns = (_middle(n, config.crop // clip.scale) for n in lq.shape[1:3])
        lq = lq[:, rows, columns]
        gt = gt[:, _times(rows, clip.scale), _times(columns, clip.scale)]
    return np.asarray(lq), np.asarray(gt)


def score_clip(
    clip_id: str,
    pairs: Iterable[tuple[Frames, Frames]],
    enlarge: Callable[[Iterator[Frames]], Iterator[Frames]],
    scale: int,
    *,
    test_set: str,
    degradation: str = "",
    metrics: Sequence[str] = (),
    weights: str | None = None,
) -> ClipScore:
    """Score a clip frame by frame; memory holds only the frames that `enlarge` is working on.

    Args:
        clip_id: names the clip.
        pairs: ground truth (scale * H, scale * W, 3) and low-resolution frame (H, W, 3), uint8 RGB.
        enlarge: maps low-resolution frames to as many super-resolved frames, in order.
        scale: the enlargement.
        test_set: names the test set of the clip.
        degradation: names how the low-resolution frames were made.
        metrics: the metrics to score beside PSNR and SSIM, by name.
        weights: the folder with the weights of metrics; see `Meter`.
    """
    waiting = deque[tuple[Frames, Frames]]()

    def low_resolution() -> Iterator[Frames]:
        for pair in pairs:
            waiting.append(pair)
            yield pair[1]

    with Meter(metrics, weights) as of_sr, Meter(metrics, weights) as of_bicubic:
        for sr in enlarge(low_resolution()):
            gt, lq = waiting.popleft()
            of_sr.add(sr, gt)
            of_bicubic.add(bicubic(lq[None], scale)[0], gt)
        return ClipScore(
            clip_id=clip_id,
            test_set=test_set,
            num_frames=of_sr.num_frames,
            degradation=degradation,
            values=_beside(of_sr.means(), of_bicubic.means()),
        )


def bicubic(lq_THWC: Frames, scale: int) -> Frames:
    """Enlarge uint8 frames by bicubic interpolation and quantise them: the baseline."""
    frames = [quantise(bicubic_upscale(f.astype(np.float32) / 255, scale)) for f in lq_THWC]
    return np.stack(frames)


def _middle(length: int, size: int) -> slice:
    start = max(0, (length - size) // 2)
    return slice(start, start + size)


def _times(part: slice, scale: int) -> slice:
    return slice(part.start * scale, part.stop * scale)
