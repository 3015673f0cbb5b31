"""The pictures of docs/how-to/watch.md: `python -m tests.docs.screenshot_dashboard`, minutes.

Two demonstrations are run to their end, and a third is photographed while it trains. Needs Debian's
`chromium` and `chromium-driver`, and Pillow.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from tests.unit.browser import find_browser, resize, start_browser

IMAGES = Path(__file__).parents[2] / "docs" / "images"
FEDVSR = [sys.executable, "-m", "fedvsr"]
# Rounds of a demonstration, and the round after which the last one is photographed.
ROUNDS, SHOWN = 8, 4
LIMIT_S = 1800.0
WIDTH, PHONE = 1200, 390


@contextmanager
def serving(results: Path) -> Iterator[str]:
    """The address of the live page of a folder of runs, or of one run, while it is served."""
    # By a short name, which the page shows.
    command = [*FEDVSR, "dashboard", results.name]
    with subprocess.Popen(command, cwd=results.parent, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            yield server.stdout.readline().split()[0]
        finally:
            server.send_signal(signal.SIGINT)
            server.communicate(timeout=20)


@contextmanager
def photographer() -> Iterator[Callable[[str, int, int, Path], None]]:
    """A function that writes the picture of a page at a width, as far as a height."""
    programs = find_browser()
    assert programs, "apt-get install chromium chromium-driver"
    browser = start_browser(*programs)

    def shoot(address: str, width: int, most_high: int, path: Path) -> None:
        resize(browser, width, 900)
        browser.get(address)
        # Until the page has its first values and has drawn them.
        time.sleep(4)
        height = browser.execute_script("return document.body.scrollHeight") + 16
        resize(browser, width, min(height, most_high))
        time.sleep(1)
        browser.save_screenshot(str(path))
        Image.open(path).convert("RGB").save(path, optimize=True)

    try:
        yield shoot
    finally:
        browser.quit()


def run(algorithm: str, folder: Path) -> subprocess.Popen[bytes]:
    """Start a demonstration, which writes to `results` in a folder."""
    preset = "demo" if algorithm == "fedvsr" else "demo_fedavg"
    settings = (
        f"federation.num_rounds={ROUNDS}",
        "local.steps=6",
        f"algorithm.name={algorithm}",
        f"name={algorithm}",
    )
    given = [word for setting in settings for word in ("--set", setting)]
    return subprocess.Popen([*FEDVSR, "run", preset, *given], cwd=folder)


def wait_for(address: str, algorithm: str) -> str:
    """The id of the run of an algorithm, once it has made `SHOWN` rounds."""
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        with urllib.request.urlopen(f"{address}runs.json", timeout=30) as answer:
            for run in json.load(answer)["runs"]:
                if run.get("algorithm") == algorithm and run["last_round"] >= SHOWN:
                    return str(run["id"])
        time.sleep(1)
    raise TimeoutError(f"the run of {algorithm} has made no {SHOWN} rounds in {LIMIT_S} s")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for algorithm in ("fedvsr", "fedavg"):
            with run(algorithm, folder) as process:
                assert process.wait(timeout=LIMIT_S) == 0
        (finished,) = (path.name for path in folder.glob("results/fedvsr-*"))
        with (
            serving(folder / "results") as address,
            photographer() as shoot,
            run("fedprox", folder) as running,
        ):
            try:
                run_id = wait_for(address, "fedprox")
                shoot(address, WIDTH, 900, IMAGES / "dashboard.png")
                shoot(f"{address}run?id={run_id}", WIDTH, 1600, IMAGES / "dashboard-run.png")
                shoot(f"{address}run?id={finished}", PHONE, 1000, IMAGES / "dashboard-phone.png")
            finally:
                running.send_signal(signal.SIGINT)
                running.wait(timeout=120)


if __name__ == "__main__":
    main()
