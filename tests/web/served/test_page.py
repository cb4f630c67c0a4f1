"""The module and the page of web/ in Chromium: `make test-browser`."""

import shutil
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import torch
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from hrvqvae.export.web import export_web
from tests.conftest import parametrize, read_json, shared_fixture
from tests.play.served import conftest
from tests.web.bundle import read_bundle
from tests.web.test_module import WEB, check_pixels, files_of_many_sizes, text_of

browser = conftest.browser

DECODE = """
const [files, done] = arguments;
import("./hrvqvae.js").then(async ({ decode, encode, load }) => {
  const model = await load("thumb.hrvw");
  const base64 = (data) => btoa(Array.from(data, (v) => String.fromCharCode(v)).join(""));
  const bytes = files.map((file) => Uint8Array.from(atob(file), (c) => c.charCodeAt(0)));
  const results = bytes.map((file) => {
    const { width, height, data } = decode(file, model);
    return { width, height, data: base64(data) };
  });
  const image = decode(bytes[0], model);
  const time = (run) => {
    const from = performance.now();
    run();
    return performance.now() - from;
  };
  const decoding = Array.from({ length: 100 }, () => time(() => decode(bytes[0], model)));
  const encoding = Array.from({ length: 10 }, () => time(() => encode(image, model)));
  done({ results, decoding, encoding });
}).catch((error) => done({ error: String(error) }));
"""
DROP = """
const [base64, done] = arguments;
const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
const file = new File([bytes], "x.png", { type: "image/png" });
const data = new DataTransfer();
data.items.add(file);
dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
setTimeout(done, 200);
"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@shared_fixture
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "web"
    shutil.copytree(WEB, folder)
    (bundle,) = export_web("thumb", folder / "bundle")
    shutil.move(bundle, folder / "thumb.hrvw")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", folder
        server.shutdown()


def wait_for(driver, script, *arguments):
    return WebDriverWait(driver, 120).until(
        lambda _: driver.execute_script(f"return {script}", *arguments)
    )


@torch.inference_mode()
def test_pixels_in_chromium_are_those_of_python(browser, site, capsys):
    address, folder = site
    model, entropy_model = read_bundle(folder / "thumb.hrvw")
    files = files_of_many_sizes(model, entropy_model)
    browser.get(address + "package.json")
    browser.set_script_timeout(600)
    results = browser.execute_async_script(DECODE, [text_of(file) for file in files])
    assert "error" not in results, results
    check_pixels(model, entropy_model, files, results["results"])
    with capsys.disabled():
        middle = {
            name: round(float(np.median(results[name])), 2) for name in ("decoding", "encoding")
        }
        print(
            f"{len(files)} files; 32 pixels: ms {middle}, 100 in {sum(results['decoding']):.0f} ms",
            file=sys.stderr,
        )


@parametrize("as_one_file", [False, True])
def test_page(browser, site, as_one_file):
    address, folder = site
    if as_one_file:
        sys.path.insert(0, str(WEB))
        from inline import main

        main(str(folder / "thumb.hrvw"), str(folder / "one.html"))
        address = (folder / "one.html").as_uri()
    browser.get(address)
    figure = "document.getElementById('figure-thumb')?.textContent"
    first = wait_for(browser, figure)
    assert "bytes" in first
    assert "dB" in first
    assert len(browser.find_elements("css selector", "#examples button")) == 10
    slider = browser.find_element("id", "bytes")
    for _ in range(100):
        slider.send_keys(Keys.ARROW_RIGHT)
    assert browser.find_element("id", "limit").text == "200"
    more = wait_for(browser, f"{figure} !== arguments[0] && {figure}", first)
    assert int(more.removeprefix("thumb").split()[0]) > int(first.removeprefix("thumb").split()[0])
    code = browser.find_element("id", "code").get_attribute("value")
    browser.find_element("id", "copy").send_keys(Keys.ENTER)
    wait_for(browser, "document.getElementById('status').textContent.startsWith('copied')")
    png = read_json(folder / "examples.json")[3]["png"]
    browser.set_script_timeout(60)
    browser.execute_async_script(DROP, png)
    wait_for(browser, "document.getElementById('code').value !== arguments[0]", code)
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    severe = [
        entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"
    ]
    # a page without BlurHash and ThumbHash asks for them and goes on
    optional = ("favicon", "node_modules")
    assert [message for message in severe if not any(name in message for name in optional)] == []
