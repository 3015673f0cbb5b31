"""Write real files for tests: videos, pictures and clip stores."""

from __future__ import annotations

import struct
from collections import namedtuple
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

from fedvsr.data import clips, store
from fedvsr.data.clips import Clip, Frames
from fedvsr.data.colour import Colour
from tests.conftest import moving_texture

# What shutil.disk_usage returns.
Usage = namedtuple("Usage", "total used free")
SOFT = (moving_texture(12, 32, 48) * 0.5 + 60).astype(np.uint8)


def write_store(folder: Path, frames: dict[str, Frames], scale: int = 4) -> list[Clip]:
    """Write a store of clips by their ids; a clip's label is the part of its id before "-"."""
    folder.mkdir(parents=True)
    entries = [
        clips.write_clip(
            folder, clip_id, clip_id.partition("-")[0], ((rgb, None) for rgb in gt), scale, "bi"
        )
        for clip_id, gt in frames.items()
    ]
    store.write_manifest(folder, entries, "video", "bi", {})
    return list(store.read_store(folder) or ())


def write_clip(
    path: Path,
    frames: Frames,
    *,
    times: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, 25),
    colour: Colour = Colour(),  # noqa: B008
    tagged: bool = True,
    sound: str | None = None,
    aspect: Fraction | None = None,
    bits: int = 8,
    codec: str = "libx264",
    encoder: dict[str, str] | None = None,
    flags: int = 0,
    shift_s: Fraction = Fraction(0),
    **options: Any,
) -> Path:
    """Write a near-lossless video, with a second of sound if `sound` names a codec.

    `shift_s` is added to the times of all packets.
    """

    def shifted(packets: list[Any]) -> list[Any]:
        for packet in packets:
            ticks = round(shift_s / packet.time_base)
            packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
        return packets

    with av.open(str(path), "w", **options) as out:
        rate = Fraction(25) if times else 1 / time_base
        stream = out.add_stream(codec, rate=rate, options={"crf": "2"} | (encoder or {}))
        audio = out.add_stream(sound, rate=44100) if sound else None
        for index, rgb in enumerate(frames):
            frame = colour.from_rgb(rgb, bits)
            if index == 0:
                stream.codec_context.flags |= flags
                stream.width, stream.height, stream.pix_fmt = *rgb.shape[1::-1], frame.format.name
                stream.codec_context.time_base = time_base
                if aspect:
                    stream.codec_context.sample_aspect_ratio = aspect
                if tagged:
                    colour.tag(stream)
            frame.pts, frame.time_base = times[index] if times else index, time_base
            out.mux(shifted(stream.encode(frame)))
        out.mux(shifted(stream.encode()))
        if audio:
            wave = np.sin(np.arange(44100) / 20)[None].repeat(2, 0).astype(np.float32)
            tone = av.AudioFrame.from_ndarray(wave, format="fltp", layout="stereo")
            tone.sample_rate, tone.pts, tone.time_base = 44100, 0, Fraction(1, 44100)
            resampler = av.AudioResampler(audio.format, audio.layout, 44100, audio.frame_size)
            for part in [*resampler.resample(tone), *resampler.resample(None)]:
                out.mux(shifted(audio.encode(part)))
            out.mux(shifted(audio.encode()))
    return path


def frame_of(planes: Sequence[npt.NDArray[Any]]) -> av.VideoFrame:
    """Make a frame of luma, Cb and Cr codes; it is 4:2:0 if chroma has half the size."""
    height, width = planes[0].shape
    pixels = "yuv444p" if planes[1].shape == planes[0].shape else "yuv420p"
    frame = av.VideoFrame(width, height, pixels)
    for plane, codes in zip(frame.planes, planes, strict=True):
        padded = np.zeros((plane.height, plane.line_size), np.uint8)
        padded[:, : plane.width] = codes
        plane.update(padded.tobytes())
    return frame


def write_codes(path: Path, frames: Sequence[Sequence[npt.NDArray[Any]]]) -> Path:
    """Write a lossless, untagged H.264 video of frames of luma, Cb and Cr codes (4:2:0)."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"qp": "0"})
        stream.height, stream.width = frames[0][0].shape
        stream.pix_fmt = "yuv420p"
        for planes in frames:
            out.mux(stream.encode(frame_of(planes)))
        out.mux(stream.encode())
    return path


# Factors of Cr in R - Y, of Cb and Cr in G - Y, and of Cb in B - Y, with Cb and Cr in [-0.5, 0.5]:
# ITU-R BT.601, BT.709 and BT.2020, by their numbers in H.273.
TO_RGB = {
    6: (1.402, -0.344136, -0.714136, 1.772),
    1: (1.5748, -0.187324, -0.468124, 1.8556),
    9: (1.4746, -0.164553, -0.571353, 1.8814),
}


def by_hand(
    luma: npt.NDArray[np.float64],
    cb: npt.NDArray[np.float64],
    cr: npt.NDArray[np.float64],
    *,
    matrix: int,
    full_range: bool = False,
) -> npt.NDArray[np.float64]:
    """Convert codes, arrays of one shape, to RGB (0 to 255) by the matrices of the standards."""
    y = luma / 255 if full_range else (luma - 16) / 219
    u, v = ((code - 128) / (255 if full_range else 224) for code in (cb, cr))
    red_v, green_u, green_v, blue_u = TO_RGB[matrix]
    rgb = np.stack([y + red_v * v, y + green_u * u + green_v * v, y + blue_u * u], axis=-1)
    return (rgb * 255).clip(0, 255)


def garble(path: Path, begin: float = 0.5, count: int = 400) -> Path:
    """Overwrite bytes in the middle of a video; its decoder makes up parts of some frames."""
    data = bytearray(path.read_bytes())
    at = int(len(data) * begin)
    data[at : at + count] = np.random.default_rng(0).bytes(count)
    path.write_bytes(data)
    return path


def turn(path: Path) -> Path:
    """Write a rotation by 90 degrees into an mp4's track header."""
    one = 1 << 16
    upright = struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    turned = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    data = bytearray(path.read_bytes())
    at = data.index(upright, data.index(b"tkhd"))
    data[at : at + len(turned)] = turned
    path.write_bytes(data)
    return path


def write_pictures(folder: Path, frames: Frames, names: str = "{}.png") -> Path:
    folder.mkdir(parents=True)
    for index, rgb in enumerate(frames):
        Image.fromarray(rgb).save(folder / names.format(index))
    return folder


def timestamps(path: Path) -> list[Fraction]:
    with av.open(str(path)) as container:
        return [frame.pts * frame.time_base for frame in container.decode(video=0)]


def sound_packets(path: Path) -> list[tuple[bytes, Fraction]]:
    with av.open(str(path)) as container:
        packets = container.demux(container.streams.audio)
        return [(bytes(p), p.pts * p.time_base) for p in packets if p.pts is not None]
