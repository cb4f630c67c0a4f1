"""The page over HTTP: hostile uploads, other hosts, addresses on the internet, many requests."""

import gc
import http.client
import json
import re
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path
from unittest.mock import Mock
from urllib.parse import urlsplit

import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from hrvqvae.model import Model
from hrvqvae.play.address import LOOPBACK
from hrvqvae.play.page import Guard, Page
from tests.conftest import input_error, parametrize, shared_fixture


@shared_fixture
def client(server):
    return Client(server.address, verbose=False)


def connected(server):
    return closing(http.client.HTTPConnection(urlsplit(server.address).netloc, timeout=100))


def upload(client, path):
    return client.predict(handle_file(str(path)), 3, True, api_name="/upload")


def image_file(path, seed=0, size=(28, 28)):
    pixels = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_nothing_is_loaded_from_elsewhere(server):
    """The browser is told to refuse it; test_chromium sees that nothing is asked for."""
    with urllib.request.urlopen(server.address) as answer:
        assert not re.findall(r"https?:|\*", answer.headers["content-security-policy"])
    with urllib.request.urlopen(server.address + "theme.css") as answer:
        assert not re.findall(r"url\(['\"]?https?:|@import", answer.read().decode())
    with urllib.request.urlopen(server.address + "config") as answer:
        config = json.load(answer)
    assert config["analytics_enabled"] is False
    assert [sheet for sheet in config["stylesheets"] if "://" in sheet] == []


def test_an_emptied_seed_is_one_line(client):
    with pytest.raises(AppError, match="^there is no seed; give a whole number$"):
        client.predict(1, "any class", 1.0, None, 1.0, api_name="/draw")


def test_a_hostile_upload_is_one_line(client, server, tmp_path):
    (tmp_path / "hostile.png").write_text("this is text\n")
    before = server.megabytes
    with pytest.raises(AppError, match="^hostile.png is not a readable PNG, JPEG or WebP image"):
        upload(client, tmp_path / "hostile.png")
    assert server.megabytes < before + 20
    upload(client, image_file(tmp_path / "x.png"))


@parametrize("sized", [True, False], ids=["length", "chunks"])
def test_100_megabytes_are_refused(sized, client, server, tmp_path):
    """Whether the request says its length or not; nothing of it is kept."""
    before = server.megabytes
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    block = bytes(1_000_000)
    tail = b"\r\n--x--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    if sized:
        headers["Content-Length"] = str(len(head) + 100 * len(block) + len(tail))
    body = iter([head, *[block] * 100, tail])
    with connected(server) as connection:
        try:
            connection.request(
                "POST", "/gradio_api/upload", body, headers, encode_chunked=not sized
            )
            answer = connection.getresponse()
            status = answer.status
            text = answer.read().decode()
        except ConnectionError:  # it was closed while we were still sending
            status = 413
            text = ""
    assert status in ((413,) if sized else (400, 413, 500))
    assert "Traceback" not in text
    assert "\n" not in text
    if sized:
        assert json.loads(text)["detail"].startswith("too large: at most ")
    assert server.megabytes < before + 40
    upload(client, image_file(tmp_path / "x.png"))


def test_no_address_is_fetched(client, server):
    body = {
        "data": [{"path": "http://192.0.2.1/x.png", "meta": {"_type": "gradio.FileData"}}, 3, True]
    }
    request = urllib.request.Request(
        server.address + "gradio_api/call/upload",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{server.address}gradio_api/call/upload/{event}") as answer:
        assert "event: error" in answer.read().decode()


def test_files_of_this_machine_are_not_served(server):
    for path in ("/etc/passwd", str(Path(__file__))):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{server.address}gradio_api/file={path}")
        with caught.value as answer:
            assert answer.code in (403, 404)


@parametrize("headers", [{"Host": "rebound.example:7860"}, {"Origin": "http://other.example"}])
def test_pages_of_other_sites_are_turned_away(headers, server):
    with connected(server) as connection:
        connection.request("POST", "/gradio_api/upload", b"x", headers)
        answer = connection.getresponse()
        assert answer.status == 403
        assert json.loads(answer.read())["detail"].startswith("this page answers to ")


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # gradio leaves event loops open
def test_images_are_drawn_by_the_settings_of_the_model_at_first():
    page = Page(Model("treevq-cifar10"), 1 << 24, 1 << 24)
    boxes = [
        block for block in page.build().blocks.values() if getattr(block, "label", "") == "Guidance"
    ]
    assert [box.value for box in boxes] == ["1,5"] * 2
    del boxes
    gc.collect()
    params = page._parse_options(1, "any class", 1, 0, "4,1")["params"]
    assert (params.guidance, params.levels) == ([4, 1], 4)
    with input_error("guidance is '4,x'; it must be such as 3 or 1,5"):
        page._parse_options(1, "any class", 1, 0, "4,x")


def test_uploads_are_limited_in_all(tmp_path):
    async def nothing(*_: object) -> None:
        pytest.fail("it was passed on")

    guard = Guard(nothing, most_bytes=10, hosts=("",), folder=tmp_path)
    for count, status in ((64, None), (65, 503)):
        for index in range(count):
            (tmp_path / f"{index}").write_bytes(bytes(10))
        refusal = guard.check("/gradio_api/upload", {})
        assert (refusal and refusal[0]) == status
    assert guard.check("/gradio_api/call/reconstruct", {}) is None


def test_hosts_with_and_without_a_port(tmp_path):
    guard = Guard(Mock(), most_bytes=10, hosts=LOOPBACK, folder=tmp_path)
    for host in ("localhost", "127.0.0.1", "[::1]"):
        for address in (host, f"{host}:7860"):
            assert guard.check("/", {b"host": address}) is None
    for address in ("rebound.example:80", "[::2]", "::2:80", "", ":"):
        assert guard.check("/", {b"host": address})[0] == 403
    assert guard.check("/", {b"host": "localhost", b"content-length": "66000"}) == (
        413,
        "too large: at most 10 bytes are admitted",
    )


def test_memory_stays_flat(client, server, tmp_path):
    files = [image_file(tmp_path / f"{index}.png", index, (40 + index, 50)) for index in range(5)]

    def ask(count):
        for index in range(count):
            upload(client, files[index % 5])
            client.predict(index % 3 + 1, True, api_name="/reconstruct")

    ask(30)
    before = server.megabytes
    ask(60)
    assert server.megabytes < before + 15
