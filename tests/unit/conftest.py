"""What unit tests share: a browser, started once for all modules that a worker runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.browser import find_browser, start_browser


@pytest.fixture
def browser(started_browser: Any) -> Iterator[Any]:
    """The browser, whose page is left and whose log is emptied after each test."""
    yield started_browser
    started_browser.get("about:blank")
    started_browser.get_log("browser")


@pytest.fixture(scope="session")
def started_browser() -> Iterator[Any]:
    """Tests are skipped where no browser is installed."""
    pytest.importorskip("selenium.webdriver", reason="needs selenium (extra test)")
    programs = find_browser()
    if not programs:
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")
    started = start_browser(*programs)
    yield started
    started.quit()
