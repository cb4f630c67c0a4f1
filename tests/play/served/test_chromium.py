"""A person at the page, in headless Chromium: draws, moves the slider, paints, clicks.

With PLAY_SCREENSHOTS=DIR in the environment, the pictures of docs/play.md are written there.
"""

import os
import re
import time
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait


class Person:
    def __init__(self, browser, address):
        self.browser = browser
        self.address = address
        browser.get(address)
        self.find("#borrow")

    def wait(self, condition):
        return WebDriverWait(self.browser, 90).until(lambda _: condition())

    def find(self, selector):
        self.wait(lambda: self.browser.find_elements(By.CSS_SELECTOR, selector))
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector):
        return self.find(selector).text

    def source(self, name):
        """Return the address of the picture in a widget; empty if it shows no picture."""
        images = self.browser.find_elements(By.CSS_SELECTOR, f"#{name} img")
        return images[0].get_attribute("src") or "" if images else ""

    def tab(self, name):
        self.find("button[role=tab]")
        for button in self.browser.find_elements(By.CSS_SELECTOR, "button[role=tab]"):
            if button.text == name:
                button.click()

    def scroll_to(self, selector):
        element = self.find(selector)
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        return element

    def click(self, selector):
        self.scroll_to(selector).click()

    def screenshot(self, name):
        folder = os.environ.get("PLAY_SCREENSHOTS")
        if folder:
            for toast in self.browser.find_elements(By.CSS_SELECTOR, ".toast-close"):
                toast.click()
            height = self.browser.execute_script("return document.documentElement.scrollHeight")
            self.browser.set_window_size(1_100, height + 150)
            self.browser.execute_script("window.scrollTo(0, 0)")
            time.sleep(1)  # until it is laid out
            shot = Image.open(BytesIO(self.browser.get_screenshot_as_png())).convert("RGB")
            shot.quantize(64).save(Path(folder) / f"play-{name}.png", optimize=True)

    def finish(self, name):
        """Take a screenshot, and check that everything was loaded from this machine."""
        self.screenshot(name)
        names = self.browser.execute_script(
            "return performance.getEntriesByType('resource').map((item) => item.name)"
        )
        assert len(names) > 5
        assert [
            name for name in names if not name.startswith((self.address, "data:", "blob:"))
        ] == []
        lines = [entry["message"] for entry in self.browser.get_log("browser")]
        assert [line for line in lines if "Content Security Policy" in line] == []


@pytest.fixture
def person(browser, server):
    return Person(browser, server.address)


def has_image(person):
    """Let the model draw an image; return the bytes of its file."""
    person.click("#borrow")
    person.wait(lambda: person.source("made"))
    return person.wait(lambda: file_bytes(person))


def file_bytes(person):
    """Return the bytes that the line tells; None while the page waits and shows the seconds."""
    told = re.match(r"([\d,]+) bytes, .*PSNR", person.text("#line"))
    return told and int(told[1].replace(",", ""))


def test_reconstruct(person):
    sizes = [has_image(person)]
    slider = person.find("#levels input[type=range]")
    for _ in range(2):
        slider.send_keys(Keys.ARROW_LEFT)
        sizes.append(person.wait(lambda: (size := file_bytes(person)) not in sizes and size))
    assert sizes == sorted(sizes, reverse=True)
    person.finish("reconstruct")


def test_draw(person):
    person.tab("Draw")
    person.click("#draw")
    person.wait(lambda: person.source("drawn"))
    person.finish("draw")


def test_complete(person):
    has_image(person)
    person.tab("Complete")
    person.click("#complete")
    person.wait(lambda: "keeps 0 of" in person.browser.page_source)
    canvas = person.scroll_to("#painter canvas")
    hand = ActionChains(person.browser, duration=20)
    for y in range(-150, 1, 30):  # the upper half, stroke by stroke
        hand.move_to_element_with_offset(canvas, -160, y).click_and_hold()
        for x in range(-150, 161, 10):
            hand.move_to_element_with_offset(canvas, x, y)
        hand.release()
    hand.perform()
    person.click("#complete")
    person.wait(lambda: person.source("completed"))
    share = int(person.text("#kept-line").split("%")[0])
    assert 40 <= share <= 70
    person.finish("complete")


def test_codebook(person):
    has_image(person)
    person.tab("Codebook")
    assert "64" in person.text("#usage")
    person.finish("codebook")
