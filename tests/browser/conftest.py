"""A headless Chromium for the tests in this folder, which `make test-browser` runs and `make test` does not.

Needs Debian's packages chromium and chromium-driver. CHROMIUM and CHROMEDRIVER give other paths.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

sys.path.insert(0, str(Path(__file__).parents[1]))  # explain_models, nsa_models

# A root user's sandbox does not start, and the browser's own traffic would be mistaken for the page's.
FLAGS = """
--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --disable-dev-shm-usage --force-device-scale-factor=1
"""


class Browser:
    """The browser with what the tests ask of it."""

    def __init__(self, driver):
        self.driver = driver
        self.script = driver.execute_script

    def show(self, path, width=1100, height=900, scheme="light"):
        """Load a page in a window of this size and colour scheme; forgets what was logged before."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        self.driver.get("about:blank")
        self.console(), self.requests()
        self.driver.get(path.as_uri())

    def console(self):
        """What the browser has logged since the last call: errors, and what the policy has stopped."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self):
        """Addresses that were asked for since the last call, but for those that the page's policy has stopped."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        failed = [m["params"] for m in messages if m["method"] == "Network.loadingFailed"]
        stopped = {f["requestId"] for f in failed if f.get("blockedReason") == "csp"}
        return [p["request"]["url"] for p in asked if p["requestId"] not in stopped]


def _program(variable, name):
    path = os.environ.get(variable) or shutil.which(name)
    assert path, f"{name} is missing: apt-get install chromium chromium-driver, or set {variable}"
    return path


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    options = Options()
    options.binary_location = _program("CHROMIUM", "chromium")
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(_program("CHROMEDRIVER", "chromedriver")))
    yield Browser(driver)
    driver.quit()
