"""The page of a report, in a real browser: Debian's `chromium` and `chromium-driver`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvsr.report.content import read
from fedvsr.report.page import page
from tests.conftest import moving_texture
from tests.unit.browser import resize, until, widths
from tests.unit.report.synthetic import write_frames, write_run
from tests.unit.report.test_figures import client


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    gt = moving_texture(1, 96, 160)[0]
    rng = np.random.default_rng(0)
    for model in ("vrt", "rvrt"):
        for seed in (1, 2):
            for algorithm, slope in (("fedavg", 0.5), ("fedvsr", 0.7), ("f_ala", 0.6)):
                run = write_run(
                    folder / "results",
                    f"{model}-{algorithm}-{seed}",
                    model=model,
                    size="paper",
                    algorithm=algorithm,
                    seed=seed,
                    num_rounds=6,
                    psnr_db=lambda r, clip, k=slope, s=seed: 29 + k * r + 0.1 * s,
                    clips=["</script><b>a", "b"],
                    clients=[client(r, c) for r in (1, 2) for c in (0, r)],
                )
                noise = rng.integers(-20, 20, gt.shape)
                write_frames(run, "b", np.clip(gt + noise, 0, 255).astype(np.uint8), gt)
    path = folder / "report.html"
    path.write_text(page(read(folder / "results")), encoding="utf-8")
    return path


def test_the_page_loads_no_other_file(html: Path) -> None:
    text = html.read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=["']?(https?:|//|\.)""", text)
    assert "default-src 'none'" in text
    match = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert match
    data = json.loads(match[1])
    assert {panel["model"] for panel in data["charts"]["panels"]} == {"VRT", "RVRT"}
    (scene, _) = data["scenes"]
    names = [picture["name"] for picture in scene["pictures"]]
    assert names == ["LQ (bicubic)", "FedAvg", "F-ALA", "FedVSR", "Ground truth"]
    assert "<b>a" not in text, "the name of a clip is text, not markup"
    assert data["charts"]["metrics"]["psnr_db"]["label"] == "PSNR (dB)"
    assert "Mean over seeds; band: one standard deviation. Thin line without points" in text
    shown = re.findall(r"<summary>(.*?)</summary>", text)
    assert shown == [f"{m}, FedVSR, less heterogeneous, seed 1" for m in ("VRT", "RVRT")]


def open_page(browser: Any, html: Path, width: int, height: int = 900) -> None:
    resize(browser, width, height)
    browser.get(html.as_uri())
    until(lambda: browser.execute_script("return document.querySelectorAll('canvas').length") > 0)


def colours(browser: Any) -> list[int]:
    """The number of different colours in each chart."""
    counts: list[int] = browser.execute_script(
        """return [...document.querySelectorAll('canvas')].map((canvas) => {
             const context = canvas.getContext('2d');
             const {data} = context.getImageData(0, 0, canvas.width, canvas.height);
             return new Set(new Uint32Array(data.buffer)).size;
           });"""
    )
    return counts


def test_it_loads_without_errors_and_the_curves_render(browser: Any, html: Path) -> None:
    open_page(browser, html, 1280)
    until(lambda: min(colours(browser)) > 20)
    assert browser.get_log("browser") == []
    fetched = browser.execute_script(
        "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    )
    assert [name for name in fetched if not name.startswith("data:")] == []
    assert "29" in browser.find_element("css selector", "#scores table").text
    by_id = {e.get_attribute("id"): e for e in browser.find_elements("css selector", "select")}
    before = browser.find_element("css selector", ".readout").text
    assert re.search(r"Round 6 FedVSR 33\.35 ± 0\.07", before), before
    by_id["metric"].send_keys("SSIM")
    until(lambda: "0.33" in browser.find_element("css selector", ".readout").text)
    # A method's button hides its line, and its number from the readout.
    (button,) = (b for b in browser.find_elements("css selector", ".legend button")
                 if b.text == "FedVSR")  # fmt: skip
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert "FedVSR" not in browser.find_element("css selector", ".readout").text


def test_curves_zoom_by_mouse_and_keyboard(browser: Any, html: Path) -> None:
    from selenium.webdriver import ActionChains, Keys

    open_page(browser, html, 1280)
    plot = browser.find_element("css selector", ".plot")

    def picture() -> str:
        text: str = browser.execute_script("return document.querySelector('canvas').toDataURL()")
        return text

    whole = picture()
    over = browser.find_element("css selector", ".u-over")
    width = over.size["width"]
    ActionChains(browser).move_to_element_with_offset(over, -width // 4, 0).click_and_hold(
    ).move_by_offset(width // 3, 0).release().perform()  # fmt: skip
    until(lambda: picture() != whole)
    browser.execute_script("arguments[0].focus()", plot)
    plot.send_keys("0")
    until(lambda: picture() == whole)
    plot.send_keys(Keys.HOME)
    assert "Round 0" in browser.find_element("css selector", ".readout").text
    plot.send_keys(Keys.ARROW_RIGHT)
    assert "Round 1" in browser.find_element("css selector", ".readout").text
    plot.send_keys("+")
    until(lambda: picture() != whole)
    browser.find_element("css selector", "button[aria-label^='Reset']").click()
    until(lambda: picture() == whole)


def test_the_slider_moves_by_mouse_and_keyboard(browser: Any, html: Path) -> None:
    from selenium.webdriver import ActionChains, Keys

    open_page(browser, html, 1280)

    def shown() -> float:
        """The visible share of the left picture in percent."""
        clip = browser.execute_script(
            "return getComputedStyle(document.getElementById('picture-left')).clipPath"
        )
        match = re.search(r"calc\(100% - ([\d.]+)%\)|inset\(0px ([\d.]+)%", clip)
        assert match, clip
        return float(match[1]) if match[1] else 100 - float(match[2])

    assert shown() == 50
    slider = browser.find_element("id", "at")
    slider.send_keys(Keys.ARROW_RIGHT)
    assert shown() == 50.5
    slider.send_keys(Keys.HOME)
    assert shown() == 0
    pair = browser.find_element("id", "pair")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", pair)
    width = pair.size["width"]
    ActionChains(browser).move_to_element(pair).click_and_hold().move_by_offset(
        width // 4, 0
    ).release().perform()
    assert shown() == pytest.approx(75, abs=1)
    pictures = [browser.find_element("id", f"picture-{side}") for side in ("left", "right")]
    sizes = [
        browser.execute_script("return [arguments[0].naturalWidth, arguments[0].naturalHeight]", p)
        for p in pictures
    ]
    assert sizes == [[160, 96], [160, 96]]
    before = pictures[1].get_attribute("src")
    browser.find_element("id", "right").send_keys("Ground truth")
    until(lambda: pictures[1].get_attribute("src") != before)
    assert "dB" in browser.find_element("id", "caption-left").text
    browser.find_element("id", "zoom").send_keys("4x")
    until(lambda: pair.size["width"] == pytest.approx(4 * width, rel=0.05))


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_no_width_makes_the_page_scroll_sideways(browser: Any, html: Path, width: int) -> None:
    open_page(browser, html, width)
    browser.execute_script("document.querySelectorAll('details').forEach((d) => d.open = true)")
    inner, scrolled = widths(browser)
    assert width - 20 <= inner <= width, "up to the width of a scroll bar"
    assert scrolled <= inner
    # Readable: nothing smaller than 12 pixels, and the canvas within the page.
    sizes = browser.execute_script(
        """return [...document.querySelectorAll('p, td, th, li, button, select')].map(
             (e) => parseFloat(getComputedStyle(e).fontSize))"""
    )
    assert min(sizes) >= 12
    edges = browser.execute_script(
        """return [...document.querySelectorAll('canvas')].map(
             (c) => c.getBoundingClientRect().right)"""
    )
    assert max(edges) <= width


def test_a_heading_stays_in_view_while_its_columns_scroll_past(browser: Any, html: Path) -> None:
    open_page(browser, html, 320)
    most, left = browser.execute_script(
        """
        const table = document.querySelector(".table");
        table.scrollLeft = table.scrollWidth;
        const box = table.querySelector("thead th[colspan] span").getBoundingClientRect();
        return [table.scrollLeft, box.left - table.getBoundingClientRect().left];
        """
    )
    assert most > 80
    assert 100 < left < 200, "beside the methods' names"


def test_the_client_view_opens_by_keyboard(browser: Any, html: Path) -> None:
    from selenium.webdriver import Keys

    open_page(browser, html, 390)
    picture = browser.find_element("css selector", "#clients img")
    assert not picture.is_displayed()
    browser.find_element("css selector", "#clients summary").send_keys(Keys.ENTER)
    until(picture.is_displayed)
    until(lambda: browser.execute_script("return arguments[0].naturalWidth", picture) > 800)
    assert 300 < picture.size["width"] <= 390
    assert browser.get_log("browser") == []


def test_every_control_is_reached_by_tab(browser: Any, html: Path) -> None:
    from selenium.webdriver import ActionChains, Keys

    open_page(browser, html, 1280)
    seen = set()
    for _ in range(80):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        seen.add(
            browser.execute_script(
                "const a = document.activeElement; return a.id || a.className || a.tagName"
            )
        )
    assert {"model", "metric", "plot", "scene", "left", "right", "zoom", "viewer", "at"} <= seen
