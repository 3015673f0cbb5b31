"""Make progressive frames of interlaced ones, with FFmpeg's filter `bwdif`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction

import av
from av.filter import Graph


def progressive(frames: Iterable[av.VideoFrame], time_base: Fraction) -> Iterator[av.VideoFrame]:
    """Deinterlace frames; as many come out as go in, at the same times.

    Every frame is filtered, as not every interlaced file says that it is one. The order of the two
    fields is the file's, and the upper field first if the file does not say.

    Args:
        frames: decoded frames of one size and pixel format.
        time_base: the unit of their times, in seconds.
    """
    graph: Graph | None = None
    times = list[int | None]()
    for frame in frames:
        if graph is None:
            graph = _graph(frame, time_base)
        times.append(frame.pts)
        graph.push(frame)
        yield from _ready(graph, times)
    if graph is not None:
        graph.push(None)
        yield from _ready(graph, times)


def _ready(graph: Graph, times: list[int | None]) -> Iterator[av.VideoFrame]:
    while True:
        try:
            frame = graph.pull()
        except (av.BlockingIOError, av.EOFError):
            return
        assert isinstance(frame, av.VideoFrame)
        # The filter counts time in halves of the unit.
        frame.pts = times.pop(0)
        yield frame


def _graph(frame: av.VideoFrame, time_base: Fraction) -> Graph:
    graph = Graph()
    buffer = graph.add(
        "buffer",
        f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}"
        f":time_base={time_base.numerator}/{time_base.denominator}:pixel_aspect=1/1",
    )
    bwdif = graph.add("bwdif", "mode=send_frame:parity=auto:deint=all")
    sink = graph.add("buffersink")
    buffer.link_to(bwdif)
    bwdif.link_to(sink)
    graph.configure()
    return graph
