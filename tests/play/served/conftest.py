"""A page that is served by the command line, in a process of its own, and a Chromium to look at
it.
"""

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service


@dataclass
class Server:
    """A running `hrvqvae play`."""

    address: str
    process: subprocess.Popen[str]

    @property
    def megabytes(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    with (tmp_path_factory.mktemp("served") / "log").open("w+") as log:
        program = "from hrvqvae.cli import main; raise SystemExit(main(['play', 'mnist']))"
        command = [sys.executable, "-c", program]
        # a proxy that is not there
        environment = {**os.environ, "HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": ""}
        process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=log, text=True, env=environment
        )
        line = process.stderr.readline()
        address = re.search(r"mnist: (http://127\.0\.0\.1:\S+)", line)
        assert address is not None, line
        yield Server(address[1], process)
        assert process.poll() is None  # the server has died
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
        process.stderr.close()


@pytest.fixture
def browser(tmp_path):
    options = webdriver.ChromeOptions()
    chosen = f"""
        --headless=new --no-sandbox --disable-dev-shm-usage --window-size=1100,900
        --user-data-dir={tmp_path}/profile
    """
    for option in chosen.split():
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    yield driver
    driver.quit()
