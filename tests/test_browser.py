# SPDX-License-Identifier: MIT
"""The report's page in a real browser: every picture loads, the slider works by keyboard, a phone's width is enough."""

import shutil

import pytest

import ascedfast

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
HOW = "needs a browser and its driver: apt-get install chromium chromium-driver"
ARGUMENTS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report of a short run of the packaged U-Net."""
    from ascedfast.demo import load_model, paired_run

    model, scheduler = load_model("unet")
    config = ascedfast.AscedConfig.fast(mad_scale=2.0)
    result = paired_run(model, scheduler, config, seed=3, samples=2, steps=8)
    folder = tmp_path_factory.mktemp("report")
    result.report.save(folder)
    return folder / "report.html"


@pytest.fixture
def browser(tmp_path):
    if not (CHROMIUM and DRIVER):
        pytest.skip(HOW)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (*ARGUMENTS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def test_pictures_slider_and_screenshot(browser, page, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    browser.set_window_size(1100, 1400)
    browser.get(page.as_uri())
    for details in browser.find_elements(By.TAG_NAME, "details"):
        browser.execute_script("arguments[0].open = true", details)
    images = browser.find_elements(By.TAG_NAME, "img")
    assert len(images) >= 2 * 8
    for image in images:
        loaded = browser.execute_script("return arguments[0].complete && arguments[0].naturalWidth > 0", image)
        assert loaded, image.get_attribute("alt")

    def film_offsets():
        script = "return [...document.querySelectorAll('.film img')].map(e => getComputedStyle(e).transform)"
        return browser.execute_script(script)

    slider, output = browser.find_element(By.ID, "step"), browser.find_element(By.ID, "at")
    before, shown = film_offsets(), output.text
    slider.send_keys(Keys.ARROW_RIGHT)
    assert output.text == str(int(shown) + 1)
    assert all(old != new for old, new in zip(before, film_offsets(), strict=True))
    slider.send_keys(Keys.HOME)
    assert output.text == "1"

    shot = tmp_path / "report.png"
    browser.save_screenshot(str(shot))
    from PIL import Image

    assert len(Image.open(shot).convert("RGB").getcolors(1 << 24)) > 500
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_phone_width_needs_no_sideways_scrolling(browser, page):
    browser.set_window_size(500, 900)  # the narrowest window that headless Chromium opens
    browser.get(page.as_uri())
    width = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert width[0] <= width[1]
