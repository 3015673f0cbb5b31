"""The live page in a real browser: Debian's `chromium` and `chromium-driver`."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedvsr.config import ExperimentConfig
from fedvsr.federation.executors import SerialExecutor
from fedvsr.runs.events import RoundRecorded
from fedvsr.runs.execution import execute
from fedvsr.runs.run import create_run
from tests.integration.running import split_of
from tests.unit.browser import resize, until, widths
from tests.unit.dashboard.test_index import damage
from tests.unit.report.synthetic import write_run


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    write_run(folder, "older-" + "x" * 60)
    damage(write_run(folder, "broken") / "rounds.parquet")
    return folder


@pytest.fixture
def server(results: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "fedvsr", "dashboard", str(results)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def text_of(browser: Any, selector: str) -> str:
    # Read in one call: the page may replace an element between two calls.
    script = "const e = document.querySelector(arguments[0]); return e ? e.innerText : ''"
    text: str = browser.execute_script(script, selector)
    return text


def test_a_run_is_shown_while_it_trains(
    browser: Any, server: subprocess.Popen[str], results: Path, small: ExperimentConfig
) -> None:
    assert server.stdout
    line = server.stdout.readline()
    match = re.fullmatch(r"(http://127\.0\.0\.1:\d+/[0-9a-f]{32}/)  \(Ctrl-C ends it\)\n", line)
    assert match, line
    resize(browser, 390)
    browser.get(match[1])
    until(lambda: "2 runs: 1 damaged, 1 finished" in text_of(browser, "#count"))
    assert "rounds.parquet is damaged" in text_of(browser, "#rows")
    inner, scrolled = widths(browser)
    assert scrolled <= inner <= 390

    run = create_run(small, results)
    events = execute(run, split_of(small), SerialExecutor)
    next(events)
    link = f"a[href='run?id={run.run_id}']"
    until(lambda: text_of(browser, link) == run.run_id)
    # By keyboard: the filter is the first thing after the links that skip and choose.
    from selenium.webdriver import Keys

    browser.find_element("id", "filter").send_keys("small")
    until(lambda: text_of(browser, "#count").startswith("1 of 3 runs"))
    browser.find_element("css selector", link).send_keys(Keys.ENTER)
    until(lambda: text_of(browser, "#badge") == "running")
    browser.execute_script("window.unchanged = true")

    for event in events:
        if isinstance(event, RoundRecorded):
            shown = f"Round\n{event.round_idx} of 3"
            until(lambda shown=shown: shown in text_of(browser, "#numbers"))
            psnr = f"{event.scores[0].values['psnr_db']:.2f} dB"
            until(lambda psnr=psnr: psnr in text_of(browser, "#numbers"))
            until(lambda r=event.round_idx: f"Round {r} " in text_of(browser, ".readout"))
    until(lambda: text_of(browser, "#badge") == "finished")
    until(lambda: "Network" in text_of(browser, "#caption-right"))
    picture = browser.find_element("id", "picture-right")
    until(lambda: browser.execute_script("return arguments[0].naturalWidth", picture) == 64)
    assert "client " in text_of(browser, "#log-lines")
    assert browser.execute_script("return window.unchanged"), "without loading the page again"
    browser.execute_script("document.querySelectorAll('details').forEach((d) => d.open = true)")
    assert "clients_per_round: 2" in text_of(browser, "#config")
    inner, scrolled = widths(browser)
    assert scrolled <= inner <= 390
    sizes = browser.execute_script(
        """return [...document.querySelectorAll('p, td, th, li, dt, dd, button, select, pre')].map(
             (e) => parseFloat(getComputedStyle(e).fontSize))"""
    )
    assert min(sizes) >= 12

    server.send_signal(signal.SIGINT)
    rest, _ = server.communicate(timeout=20)
    assert (rest, server.returncode) == ("\nthe page is closed; no run is affected\n", 0)
    # Somebody who comes back to the page is told at once.
    browser.execute_script("document.dispatchEvent(new Event('visibilitychange'))")
    until(lambda: "does not answer" in text_of(browser, "#connection"))
    severe = [entry for entry in browser.get_log("browser") if "ERR_CONN" not in entry["message"]]
    assert severe == []
