# SPDX-License-Identifier: MIT
"""The server's page in a real browser: before and after, masks, severity, progress, errors, a phone's width."""

import asyncio
import threading
import time

import numpy as np
import pytest
import uvicorn
from test_browser import browser  # noqa: F401  (a fixture)

from ascedfast.server.app import create_app
from ascedfast.server.encode import png
from ascedfast.server.errors import BusyError
from ascedfast.server.settings import ServerSettings

pytestmark = pytest.mark.browser
SIZE = 64


def picture(value):
    return png(np.full((SIZE, SIZE, 3), value, np.uint8))


class Drawer:
    """A backend that draws grey images in steps; a corrected one is lighter. Seed 429 finds the queue full."""

    def __init__(self):
        self.requests, self.left, self.pause = [], 0, 0.0

    async def draw_in_steps(self, request):
        self.requests.append(request)
        if request.seed == 429:
            raise BusyError
        try:
            for step in range(request.steps):
                await asyncio.sleep(self.pause)
                yield step + 1
        except (GeneratorExit, asyncio.CancelledError):
            self.left += 1
            raise
        yield [self._image(request, draw) for draw in range(request.n)]

    def _image(self, request, draw):
        image = {"seed": request.seed, "draw": draw, "sha256": "0" * 64}
        if not request.asced.enabled:
            return {**image, "b64_json": picture(60), "asced": None}
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[8:24, 8:24] = 255
        found = {"status": "corrected", "reason": None, "severity": 1.25, "area": 0.0625, "p_value": None, "t_c": 9}
        masks = {"mask": png(mask), "mask_grown": png(mask)}
        return {**image, "b64_json": picture(120), "asced": {**found, **masks}}

    async def metrics(self):
        return {}

    async def is_ready(self):
        return True


def started(settings, drawer):
    app = create_app(settings, (SIZE, SIZE), drawer)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.started
    return server, thread, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"


@pytest.fixture
def drawer():
    return Drawer()


@pytest.fixture(params=[None])
def page(request, drawer):
    server, thread, url = started(ServerSettings(token=request.param), drawer)
    yield url
    server.should_exit = True
    thread.join(10)


def fill(browser, **fields):  # noqa: F811
    for name, value in fields.items():
        browser.execute_script("const e = document.getElementById(arguments[0]); e.value = arguments[1];", name, value)


def draw(browser):  # noqa: F811
    from selenium.webdriver.common.by import By

    browser.find_element(By.ID, "draw").click()


def status_of(browser, wanted, field="status", seconds=20):  # noqa: F811
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, seconds).until(lambda b: wanted in b.find_element(By.ID, field).text)
    return browser.find_element(By.ID, field).text


def no_complaints(browser):  # noqa: F811
    return [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]


def test_before_and_after_mask_and_severity(browser, page, drawer):  # noqa: F811
    from selenium.webdriver.common.by import By

    browser.set_window_size(1100, 1200)
    browser.get(page)
    status_of(browser, "emoji64-dit", "model")
    fill(browser, seed=7, n=2, steps=5)
    draw(browser)
    status_of(browser, "seed 7")
    assert [
        (r.seed, r.n, r.steps, r.asced.enabled) for r in sorted(drawer.requests, key=lambda r: r.asced.enabled)
    ] == [
        (7, 2, 5, False),
        (7, 2, 5, True),
    ]
    sections = browser.find_elements(By.CLASS_NAME, "row")
    assert [s.find_element(By.TAG_NAME, "h2").text for s in sections] == ["Image 1: corrected", "Image 2: corrected"]
    assert "Severity 1.250, 6.3 %" in sections[0].find_element(By.CLASS_NAME, "found").text
    greys = browser.execute_script(
        """return [...document.querySelectorAll('.row:first-child img')].map(image => {
            const canvas = document.createElement('canvas'); canvas.width = canvas.height = 64;
            const draws = canvas.getContext('2d'); draws.drawImage(image, 0, 0);
            const red = (at) => draws.getImageData(at, at, 1, 1).data[0];
            return [image.className, red(10), red(50)];
        })"""
    )
    assert greys == [["before", 60, 60], ["after", 120, 120], ["under", 120, 120], ["mask", 255, 0]]
    assert browser.execute_script("const p = document.getElementById('progress'); return p.value === p.max")
    assert not no_complaints(browser)


def test_a_phone_is_wide_enough(browser, page):  # noqa: F811
    browser.set_window_size(400, 900)
    browser.get(page)
    fill(browser, seed=1, n=1, steps=3)
    draw(browser)
    status_of(browser, "seed 1")
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")


def test_what_the_server_refuses_is_shown(browser, page):  # noqa: F811
    browser.get(page)
    fill(browser, seed=429)
    draw(browser)
    assert "try again in" in status_of(browser, "queue is full", "error")
    fill(browser, seed=1, n=99)
    draw(browser)
    assert "n" in status_of(browser, "less than or equal to 8", "error")
    fill(browser, n=1)
    draw(browser)  # and goes on
    status_of(browser, "seed 1")


@pytest.mark.parametrize("page", ["let-me-in-please"], indirect=True)
def test_a_token_is_asked_for_and_sent(browser, page):  # noqa: F811
    browser.get(page)
    fill(browser, seed=1, n=1, steps=3)
    draw(browser)
    status_of(browser, "token", "error")
    fill(browser, token="let-me-in-please")
    draw(browser)
    status_of(browser, "seed 1")


def test_stop_leaves_the_requests(browser, page, drawer):  # noqa: F811
    from selenium.webdriver.common.by import By

    drawer.pause = 0.1
    browser.get(page)
    fill(browser, seed=1, n=1, steps=200)
    draw(browser)
    status_of(browser, "step 2")
    browser.find_element(By.ID, "stop").click()
    status_of(browser, "stopped")
    deadline = time.monotonic() + 10
    while drawer.left < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert drawer.left == 2
