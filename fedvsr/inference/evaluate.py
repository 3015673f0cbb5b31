"""Scores networks on test clips, beside bicubic enlargement."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch

from fedvsr import metrics, models
from fedvsr.data.clips import Clip, Frames
from fedvsr.data.degrade import bicubic_upscale, quantise
from fedvsr.determinism import scoped_torch
from fedvsr.inference.config import EvaluationConfig
from fedvsr.inference.scores import ClipScore
from fedvsr.inference.tiling import super_resolve
from fedvsr.models.spec import ModelConfig
from fedvsr.params import FloatVector, load_flat
from fedvsr.training.requirements import model_spec


class Evaluator:
    """Scores parameter vectors on fixed clips; the bicubic baseline is computed once."""

    def __init__(self, model: ModelConfig, config: EvaluationConfig, clips: Sequence[Clip]) -> None:
        self.spec = model_spec(model)
        self.config = config
        self.clips = clips
        self.network = models.build_fresh(model).eval()
        if torch.cuda.is_available():
            self.network.cuda()
        self._baseline: dict[str, tuple[float, float, float | None]] = {}

    @property
    def device_name(self) -> str:
        """`CPU`, or the name of the GPU."""
        return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"

    def score(self, params: FloatVector) -> list[ClipScore]:
        """Score each test clip with the parameters (P,)."""
        load_flat(self.network, params)
        with scoped_torch(0, self.config.num_threads):
            return [self._score(clip) for clip in self.clips]

    def pictures(self, params: FloatVector, clip: Clip, frame_idx: int) -> dict[str, Frames]:
        """One frame (H, W, 3) of a clip as `bicubic`, `sr` and `gt`."""
        load_flat(self.network, params)
        lq, gt = scored_frames(clip, self.config)
        with scoped_torch(0, self.config.num_threads):
            sr = super_resolve(self.network, self.spec, lq, self.config.tiles)
        one = slice(frame_idx, frame_idx + 1)
        return {"bicubic": bicubic(lq[one], clip.scale)[0], "sr": sr[frame_idx], "gt": gt[one][0]}

    def _score(self, clip: Clip) -> ClipScore:
        lq, gt = scored_frames(clip, self.config)
        if clip.clip_id not in self._baseline:
            self._baseline[clip.clip_id] = self._compare(bicubic(lq, clip.scale), gt)
        sr = super_resolve(self.network, self.spec, lq, self.config.tiles)
        psnr_db, ssim, lpips = self._compare(sr, gt)
        bicubic_psnr_db, bicubic_ssim, bicubic_lpips = self._baseline[clip.clip_id]
        return ClipScore(
            clip_id=clip.clip_id,
            num_frames=len(gt),
            psnr_db=psnr_db,
            ssim=ssim,
            lpips=lpips,
            bicubic_psnr_db=bicubic_psnr_db,
            bicubic_ssim=bicubic_ssim,
            bicubic_lpips=bicubic_lpips,
        )

    def _compare(self, sr: Frames, gt: Frames) -> tuple[float, float, float | None]:
        luma = self.config.luma
        psnr_db, ssim = metrics.psnr(sr, gt, luma).mean(), metrics.ssim(sr, gt, luma).mean()
        lpips = float(metrics.lpips(sr, gt).mean()) if self.config.lpips else None
        return float(psnr_db), float(ssim), lpips


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
    luma: bool = False,
    lpips: bool = False,
) -> ClipScore:
    """Score a clip frame by frame; memory holds only the frames that `enlarge` is working on.

    Args:
        clip_id: names the clip.
        pairs: ground truth (scale * H, scale * W, 3) and low-resolution frame (H, W, 3), uint8 RGB.
        enlarge: maps low-resolution frames to as many super-resolved frames, in order.
        scale: the enlargement.
        luma: compare BT.601 Y.
        lpips: also score LPIPS.
    """
    waiting = deque[tuple[Frames, Frames]]()

    def low_resolution() -> Iterator[Frames]:
        for pair in pairs:
            waiting.append(pair)
            yield pair[1]

    of_sr, of_bicubic = list[tuple[float, ...]](), list[tuple[float, ...]]()
    for sr in enlarge(low_resolution()):
        gt, lq = waiting.popleft()
        for scores, frame in ((of_sr, sr), (of_bicubic, bicubic(lq[None], scale)[0])):
            values = [metrics.psnr(frame, gt, luma), metrics.ssim(frame, gt, luma)]
            values += [metrics.lpips(frame, gt)] if lpips else []
            scores.append(tuple(map(float, values)))
    psnr_db, ssim, *rest = map(float, np.mean(of_sr, axis=0))
    bicubic_psnr_db, bicubic_ssim, *bicubic_rest = map(float, np.mean(of_bicubic, axis=0))
    return ClipScore(
        clip_id=clip_id,
        num_frames=len(of_sr),
        psnr_db=psnr_db,
        ssim=ssim,
        lpips=rest[0] if rest else None,
        bicubic_psnr_db=bicubic_psnr_db,
        bicubic_ssim=bicubic_ssim,
        bicubic_lpips=bicubic_rest[0] if bicubic_rest else None,
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
