"""VMAF by Netflix's libvmaf, which ffmpeg contains. Frames are uint8 RGB arrays (H, W, 3).

ffmpeg is a process of its own that reads frames as they come, so memory does not grow with a clip's
length. The package imageio-ffmpeg brings it, or IMAGEIO_FFMPEG_EXE names another.
"""

from __future__ import annotations

import re
import subprocess

import numpy as np
import torch

from fedvsr.errors import UserError
from fedvsr.metrics.fidelity import Frames, luma, require_frames
from fedvsr.metrics.perceptual import missing

MODEL = "vmaf_v0.6.1"
_SCORE = re.compile(r"VMAF score: ([-+.\de]+)")
# Chroma of a grey picture. The model reads luma alone.
_GREY = 128


class Vmaf:
    """The VMAF of a clip, frame by frame: the mean over its frames.

    Luma is BT.601 studio range, rounded to 8 bits, as in a yuv420p video.
    """

    def __init__(self) -> None:
        self._ffmpeg = _executable()
        self._process: subprocess.Popen[bytes] | None = None
        self._chroma = b""

    def add(self, sr: Frames, gt: Frames) -> None:
        """Compare the next frame.

        Raises:
            UserError: ffmpeg ended.
        """
        require_frames(sr, gt)
        height, width = gt.shape[:2]
        if self._process is None:
            self._process = self._start(height, width)
            self._chroma = bytes([_GREY]) * (4 * height * width)
        assert self._process.stdin is not None
        try:
            for frame in (sr, gt):
                self._process.stdin.write(np.rint(luma(frame)).astype(np.uint8).tobytes())
            self._process.stdin.write(self._chroma)
        except BrokenPipeError:
            raise self._failure() from None

    def mean(self) -> float | None:
        """The clip's VMAF, once its frames are added; None without frames.

        Raises:
            UserError: ffmpeg has no libvmaf, or failed.
        """
        if self._process is None:
            return None
        message = self._end()
        match = _SCORE.search(message)
        if match is None or self._process.returncode:
            raise self._failure(message)
        return float(match[1])

    def close(self) -> None:
        """End ffmpeg, if it still runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._end()

    def _start(self, height: int, width: int) -> subprocess.Popen[bytes]:
        # Both frames come as one, the super-resolved one above, so that one pipe carries them.
        # Without chroma subsampling they can be cut apart at any row.
        size = f"{width}:{height}"
        graph = (
            f"split[both][again];[both]crop={size}:0:0[sr];[again]crop={size}:0:{height}[gt];"
            f"[sr][gt]libvmaf=model=version={MODEL}:n_threads={torch.get_num_threads()}"
        )
        command = [self._ffmpeg, "-nostdin", "-hide_banner", "-nostats", "-f", "rawvideo"]
        command += ["-pix_fmt", "yuv444p", "-s", f"{width}x{2 * height}", "-i", "pipe:0"]
        command += ["-filter_complex", graph, "-f", "null", "-"]
        # In a session of its own, so that Ctrl-C reaches this process alone. If this one is killed,
        # ffmpeg reads the end of its input, and ends.
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def _end(self) -> str:
        """What ffmpeg said, once it has ended."""
        assert self._process is not None
        return self._process.communicate()[1].decode(errors="replace")

    def _failure(self, message: str | None = None) -> UserError:
        assert self._process is not None
        message = self._end() if message is None else message
        if "No such filter" in message or "Unknown filter" in message:
            return UserError(
                f"evaluation.metrics: {self._ffmpeg} has no libvmaf; unset IMAGEIO_FFMPEG_EXE to "
                "use the one of imageio-ffmpeg"
            )
        lines = message.strip().splitlines()
        reason = lines[-1] if lines else f"exit status {self._process.returncode}"
        return UserError(f"evaluation.metrics: vmaf: {self._ffmpeg} failed: {reason}")


def _executable() -> str:
    try:
        import imageio_ffmpeg
    except ImportError:
        raise missing("vmaf") from None
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise UserError(f"evaluation.metrics: vmaf: {error}") from None
