"""How fast training samples are read: `make bench-data`, or this file with arguments.

Samples of RVRT's recipe (30 frames, 256-pixel ground-truth crops, x4, flips and transposition) as
float tensors: from the clip store; from PNG frames as BasicSR's REDSRecurrentDataset reads them,
which decodes all frames whole, ground truth and input, and then crops; and from other layouts of
the same frames. Each figure is from a process and a thread of its own, in turns with the others, so
that a machine's drift falls on all alike. Warm: the files are in the page cache. Cold: they leave
it before each sample.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice, product
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import decode_png, read_file

from fedvsr.data.clips import Clip, Frames, write_clip
from fedvsr.data.degrade import bicubic_upscale
from fedvsr.data.loader import Loader
from fedvsr.data.sampling import Draw, passes, read_batch, to_float
from fedvsr.data.shape import SampleShape
from fedvsr.data.store import read_store, write_manifest

CPU = torch.device("cpu")
SHAPE = SampleShape(num_frames=30, crop=256, augment=True)
SCALE, TILE = 4, 64
SAMPLE_MB = SHAPE.num_frames * 3 * SHAPE.crop**2 * (1 + 1 / SCALE**2) / 1e6
PNG = ("pillow", "torchvision", "pyav")
LAYOUTS = ("npy", "planar", "tiles", "tiles_by_time", "arrow")

# Frames [start, start + 30) of the rows and columns given: (T, C, H, W), C contiguous or not.
Window = Callable[[Clip, str, int, slice, slice], Frames]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", help="keep the frames here, for another run")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--height", type=int, default=720)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--samples", type=int, default=40, help="of a turn; a tenth of it from PNG")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(Path(options.folder), **json.loads(options.measure))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        write_frames(folder, options.frames, options.height, options.width)
        sources = (*(f"png:{name}" for name in PNG), *(f"layout:{name}" for name in LAYOUTS))
        speed_table(folder, ("store", *sources), options)
        memory_table(folder, options)
        wait_table(folder, options)


def speed_table(folder: Path, sources: Sequence[str], options: argparse.Namespace) -> None:
    found: dict[tuple[str, bool], list[dict[str, float]]] = {}
    for turn in range(options.turns):
        for source in sources:
            for cold in (False, True):
                few = source.startswith("png") or cold
                count = max(2, options.samples // (10 if few else 1))
                got = spawned(folder, source=source, count=count, cold=cold, seed=turn)
                found.setdefault((source, cold), []).append(got)
    print(
        f"RVRT's samples: {SAMPLE_MB:.2f} MB of uint8 each; {options.frames} frames of "
        f"{options.height} x {options.width}; median of {options.turns} turns; "
        f"one thread; torch {torch.__version__}\n"
    )
    columns = ("from", "cache", "samples/s", "MB/s", "store, times as fast", "(range)")
    print("| " + " | ".join((*columns, "MB off disk a sample")) + " |")
    print("|" + "---|" * (1 + len(columns)))
    for (source, cold), runs in found.items():
        rates = [run["samples_per_s"] for run in runs]
        own = [run["samples_per_s"] for run in found["store", cold]]
        ratios = [mine / rate for mine, rate in zip(own, rates, strict=True)]
        rate, disk = statistics.median(rates), statistics.median(r["disk_mb"] for r in runs)
        print(
            f"| {source} | {'cold' if cold else 'warm'} | {rate:.2f} | {rate * SAMPLE_MB:.0f} | "
            f"{statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} | "
            f"{disk:.1f} |",
            flush=True,
        )


def memory_table(folder: Path, options: argparse.Namespace) -> None:
    print("\n| clips | MB on disk | peak MiB | its own at the end, MiB |\n|---|---|---|---|")
    clips = read_store(folder / "store") or []
    for num_clips in (1, len(clips)):
        size = sum(
            Path(clip.folder, f"{clip.clip_id}_{kind}.npy").stat().st_size
            for clip in clips[:num_clips]
            for kind in ("gt", "lq")
        )
        got = spawned(folder, source="store", count=60, cold=False, seed=0, num_clips=num_clips)
        print(f"| {num_clips} | {size / 1e6:.0f} | {got['peak_mib']:.0f} | {got['own_mib']:.0f} |")


def wait_table(folder: Path, options: argparse.Namespace) -> None:
    """What a step loop waits whose steps leave the processor alone, as a GPU's do."""
    step_s = 0.1
    columns = ("cache", "readers", f"waited, % of a step of {step_s} s", "(range)")
    print("\n| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for cold in (False, True):
        parts: dict[int, list[float]] = {0: [], 1: [], 2: []}
        for turn in range(options.turns):
            for num_workers, found in parts.items():
                settings = {"step_s": step_s, "num_workers": num_workers}
                got = spawned(folder, source="store", count=10, cold=cold, seed=turn, **settings)
                found.append(100 * got["wait_s"] / step_s)
        for num_workers, found in parts.items():
            cells = ("cold" if cold else "warm", str(num_workers))
            middle = f"{statistics.median(found):.2f}"
            print(f"| {' | '.join(cells)} | {middle} | {min(found):.2f} to {max(found):.2f} |")


def spawned(folder: Path, **task: object) -> dict[str, float]:
    """Run `measure` in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_data", "--folder", str(folder)]
    done = subprocess.run(
        [*command, "--measure", json.dumps(task)], check=True, stdout=subprocess.PIPE
    )
    got: dict[str, float] = json.loads(done.stdout)
    return got


def measure(
    folder: Path,
    source: str,
    count: int,
    cold: bool,
    seed: int,
    num_clips: int = 1,
    num_workers: int = 0,
    step_s: float = 0.0,
) -> dict[str, float]:
    """Seconds and memory of reading `count` samples, one by one, or beside steps of `step_s`."""
    torch.set_num_threads(1)
    clips = (read_store(folder / "store") or [])[:num_clips]
    files = files_of(folder, source, clips)
    if not cold:
        for path in files:
            warm(path)
    if step_s:
        first_s = 0.0
        draws = islice(passes(clips, seed, 1), count + 1)
        with Loader(partial(read_batch, shape=SHAPE), draws, num_workers) as loader:
            for number, _ in enumerate(loader):
                if number == 0:
                    first_s = loader.wait_s
                if cold:
                    drop(files)
                time.sleep(step_s)
        return {"wait_s": (loader.wait_s - first_s) / count}
    read = reader(folder, source)
    spent_s, read_bytes = 0.0, 0
    for number, (draw,) in enumerate(islice(passes(clips, seed, 1), count + 1)):
        if cold:
            drop(files)
        before_bytes, before_s = disk_bytes(), time.perf_counter()
        lq, gt = read(draw)
        assert lq.shape[-1] * SCALE == gt.shape[-1] == SHAPE.crop
        if number:  # The first one warms up.
            spent_s += time.perf_counter() - before_s
            read_bytes += disk_bytes() - before_bytes
    return {
        "samples_per_s": count / spent_s,
        "disk_mb": read_bytes / count / 1e6,
        "peak_mib": status_mib("VmHWM"),
        "own_mib": status_mib("RssAnon"),
    }


def files_of(folder: Path, source: str, clips: Sequence[Clip]) -> list[Path]:
    kind, _, name = source.partition(":")
    if kind == "png":
        return sorted((folder / "png").rglob("*.png"))
    if kind == "store" or name == "npy":
        names = (f"{clip.clip_id}_{what}.npy" for clip in clips for what in ("gt", "lq"))
        return [folder / "store" / name for name in names]
    return sorted((folder / "layouts").glob(f"{name}_[gl][tq].*"))


def reader(folder: Path, source: str) -> Callable[[Draw], tuple[Tensor, Tensor]]:
    """What reads a sample: `(lq_TCHW, gt_TCHW)` float32."""
    if source == "store":

        def from_store(draw: Draw) -> tuple[Tensor, Tensor]:
            lq, gt = (to_float(frames, CPU) for frames in read_batch([draw], SHAPE))
            return lq[0], gt[0]

        return from_store
    kind, _, name = source.partition(":")
    window = png_window(folder, name) if kind == "png" else layout_window(folder, name)

    def read(draw: Draw) -> tuple[Tensor, Tensor]:
        rng, clip = np.random.default_rng(draw.seed), draw.clip
        latest = clip.num_frames - SHAPE.num_frames
        start = draw.start if draw.start <= latest else int(rng.integers(latest + 1))
        size = SHAPE.crop // SCALE
        top = int(rng.integers(clip.height // SCALE - size + 1))
        left = int(rng.integers(clip.width // SCALE - size + 1))
        flips = rng.random(3) < 0.5
        lq, gt = (
            turned(
                window(clip, what, start, *(slice(by * n, by * (n + size)) for n in (top, left))),
                *flips,
            )
            for what, by in (("lq", 1), ("gt", SCALE))
        )
        return lq, gt

    return read


def turned(frames_TCHW: Frames, flip_x: bool, flip_y: bool, transpose: bool) -> Tensor:
    if flip_x:
        frames_TCHW = frames_TCHW[..., ::-1]
    if flip_y:
        frames_TCHW = frames_TCHW[..., ::-1, :]
    if transpose:
        frames_TCHW = frames_TCHW.swapaxes(2, 3)
    out = np.empty(frames_TCHW.shape, np.uint8)
    for frame, into in zip(frames_TCHW, out, strict=True):
        into[...] = frame
    return to_float(torch.from_numpy(out), CPU)


def png_window(folder: Path, name: str) -> Window:
    def pillow(path: Path) -> Frames:
        with Image.open(path) as picture:
            return np.asarray(picture).transpose(2, 0, 1)

    def torchvision(path: Path) -> Frames:
        return decode_png(read_file(str(path))).numpy()

    def pyav(path: Path) -> Frames:
        with av.open(str(path)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            frame = next(container.decode(video=0)).to_ndarray(format="rgb24")
            return frame.astype(np.uint8, copy=False).transpose(2, 0, 1)

    decode = {"pillow": pillow, "torchvision": torchvision, "pyav": pyav}[name]

    def window(clip: Clip, what: str, start: int, rows: slice, columns: slice) -> Frames:
        # All frames whole before the first crop, as there; uint8 and not float as there.
        paths = (folder / "png" / what / f"{start + t:08d}.png" for t in range(SHAPE.num_frames))
        whole = [decode(path) for path in paths]
        return np.stack([np.ascontiguousarray(frame[:, rows, columns]) for frame in whole])

    return window


def layout_window(folder: Path, name: str) -> Window:
    def window(clip: Clip, what: str, start: int, rows: slice, columns: slice) -> Frames:
        times = range(start, start + SHAPE.num_frames)
        t = slice(start, start + SHAPE.num_frames)
        if name == "npy":
            stored = clip.gt() if what == "gt" else clip.lq()
            announce(stored, rows, times)
            return np.ascontiguousarray(stored[t, rows, columns]).transpose(0, 3, 1, 2)
        path = folder / "layouts" / f"{name}_{what}"
        if name == "arrow":
            # Read by pyarrow, which gives the place in the file; NumPy maps it, to be announced.
            scale = 1 if what == "gt" else SCALE
            shape = clip.num_frames, clip.height // scale, clip.width // scale, 3
            with pa.memory_map(f"{path}.arrow") as file:
                values = pa.ipc.open_file(file).get_batch(0).column(0).buffers()[1]
                file.seek(0)
                place = values.address - file.read_buffer(1).address
            stored = np.memmap(f"{path}.arrow", np.uint8, "r", place, shape)
            announce(stored, rows, times)
            return np.ascontiguousarray(stored[t, rows, columns]).transpose(0, 3, 1, 2)
        stored = np.load(f"{path}.npy", mmap_mode="r")
        if name == "planar":
            announce(stored, rows, times, range(3))
            return np.ascontiguousarray(stored[t, :, rows, columns])
        # Tiles that the crop touches, put together, then the crop.
        y, x = (slice(s.start // TILE, -(-s.stop // TILE)) for s in (rows, columns))
        if name == "tiles":
            announce(stored, x, times, range(y.start, y.stop))
            touched = stored[t, y, x].transpose(0, 1, 3, 2, 4, 5)
        else:
            announce(stored, t, range(y.start, y.stop), range(x.start, x.stop))
            touched = stored[y, x, t].transpose(2, 0, 3, 1, 4, 5)
        _, down, _, across, _, _ = touched.shape
        whole = touched.reshape(SHAPE.num_frames, down * TILE, across * TILE, 3)
        inside = (slice(s.start % TILE, s.start % TILE + s.stop - s.start) for s in (rows, columns))
        return whole[(slice(None), *inside)].transpose(0, 3, 1, 2)

    return window


def announce(stored: Frames, run: slice, *leading: range) -> None:
    """Ask for `stored[i, j, run]`, every i and j of `leading`, as the store does for its rows."""
    assert isinstance(stored, np.memmap)
    assert isinstance(stored.base, mmap.mmap)
    first, strides = stored.offset % mmap.ALLOCATIONGRANULARITY, stored.strides
    for index in product(*leading):
        place = sum(i * stride for i, stride in zip(index, strides, strict=False))
        begin = first + place + run.start * strides[len(leading)]
        end = begin + (run.stop - run.start) * strides[len(leading)]
        begin -= begin % mmap.PAGESIZE
        stored.base.madvise(mmap.MADV_WILLNEED, begin, end - begin)


def write_frames(folder: Path, num_frames: int, height: int, width: int) -> None:
    """Four clips in the store; the first one also as PNG and in the other layouts."""
    if (folder / "store").exists():
        return
    (folder / "store").mkdir(parents=True)
    entries = []
    for i in range(4):
        pairs = ((frame, None) for frame in textured(num_frames, height, width, i))
        entries.append(write_clip(folder / "store", f"c{i}", "texture", pairs, SCALE, "bi"))
    write_manifest(folder / "store", entries, "video", "bi", {})
    (clip, *_) = read_store(folder / "store") or []
    (folder / "layouts").mkdir()
    for what, frames in (("gt", clip.gt()), ("lq", clip.lq())):
        (folder / "png" / what).mkdir(parents=True)
        for t, frame in enumerate(frames):
            Image.fromarray(frame).save(folder / "png" / what / f"{t:08d}.png")
        save = lambda name, array: np.save(folder / "layouts" / f"{name}_{what}.npy", array)  # noqa: B023, E731
        save("planar", frames.transpose(0, 3, 1, 2))
        down, across = (-(-n // TILE) * TILE for n in frames.shape[1:3])
        pad = ((0, 0), (0, down - frames.shape[1]), (0, across - frames.shape[2]), (0, 0))
        tiled = np.pad(frames, pad).reshape(
            len(frames), down // TILE, TILE, across // TILE, TILE, 3
        )
        save("tiles", tiled.transpose(0, 1, 3, 2, 4, 5))
        save("tiles_by_time", tiled.transpose(1, 3, 0, 2, 4, 5))
        flat = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(frames[0].size),
            len(frames),
            [None, pa.py_buffer(np.ascontiguousarray(frames))],
        )
        batch = pa.record_batch([flat], names=["frame"])
        path = str(folder / "layouts" / f"arrow_{what}.arrow")
        with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, batch.schema) as out:
            out.write_batch(batch)
    os.sync()


def textured(num_frames: int, height: int, width: int, seed: int) -> Frames:
    """A drifting texture with detail of all sizes: PNG takes about as much for it as for REDS."""
    rng = np.random.default_rng(seed)
    size = height + num_frames, width + num_frames
    canvas = rng.standard_normal((*size, 3), np.float32) * 2 + 110
    for step in (2, 4, 8, 32):
        coarse = rng.standard_normal((-(-size[0] // step), -(-size[1] // step), 3), np.float32)
        canvas += 4 * step**0.6 * bicubic_upscale(coarse, step)[: size[0], : size[1]]
    whole = canvas.clip(0, 255).astype(np.uint8)
    return np.stack([whole[t : t + height, t : t + width] for t in range(num_frames)])


def drop(files: Sequence[Path]) -> None:
    """Let the page cache forget files; they must be on disk already."""
    for path in files:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def warm(path: Path) -> None:
    with path.open("rb") as file:
        while file.read(1 << 20):
            pass


def disk_bytes() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("read_bytes")).split()[1])


def status_mib(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024


if __name__ == "__main__":
    main()
