"""What unit tests share: a browser, started once for all modules that a worker runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def browser(started_browser: Any) -> Iterator[Any]:
    """The browser, whose page is left and whose log is emptied after each test."""
    yield started_browser
    started_browser.get("about:blank")
    started_browser.get_log("browser")


@pytest.fixture(scope="session")
def started_browser() -> Iterator[Any]:
    """Debian's `chromium` with `chromium-driver`; tests are skipped without them."""
    selenium = pytest.importorskip("selenium.webdriver", reason="needs selenium (extra test)")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    yield started
    started.quit()
