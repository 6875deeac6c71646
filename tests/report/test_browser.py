"""The page in a real browser: headless Chromium renders it, asks the network for nothing and logs no error."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stage1.report import write_report

from .browser import CHROMIUM, chromium

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: the page is not rendered")


def requested(netlog: Path) -> set[str]:
    """Every address that a page made the browser ask for; what the browser asks on its own account has no origin."""
    events = json.loads(netlog.read_text(errors="replace"))["events"]
    asked = [event["params"] for event in events if "url" in event.get("params", {}) and "initiator" in event["params"]]
    return {params["url"] for params in asked if params["initiator"] != "not an origin"}


def test_it_renders_without_network_or_console_errors(certified, tmp_path):
    page = write_report(tmp_path / "run", **certified.arguments())[0]
    log = tmp_path / "net.json"
    done = chromium(page, tmp_path / "profile", "--enable-logging=stderr", f"--log-net-log={log}", "--dump-dom")
    dom = re.sub(r"\s+", " ", done.stdout)
    assert certified.certificate["statement"] in dom
    assert dom.count("<img") == 6 + len(certified.thumbnails)
    assert "</footer>" in dom
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert console == []
    assert requested(log) == set()


def test_the_network_log_would_show_a_request(tmp_path):
    # The control: the same look at a page that does ask for something, and complains.
    page = tmp_path / "page.html"
    page.write_text('<img src="http://127.0.0.1:9/x.png"><script>console.error("seen")</script>')
    log = tmp_path / "net.json"
    done = chromium(page, tmp_path / "profile", "--enable-logging=stderr", f"--log-net-log={log}", "--dump-dom")
    assert "http://127.0.0.1:9/x.png" in requested(log)
    assert any("CONSOLE" in line and "seen" in line for line in done.stderr.splitlines())


@pytest.mark.parametrize("name,width,dark", [("certified", 1280, False), ("not_certifiable", 420, True)])
def test_the_screenshot_shows_the_verdict(request, tmp_path, name, width, dark):
    page = write_report(tmp_path / "run", **request.getfixturevalue(name).arguments())[0]
    shot = tmp_path / "shot.png"
    theme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    chromium(page, tmp_path / "profile", f"--window-size={width},1600", f"--screenshot={shot}", *theme)
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert pixels.shape[1] == width
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 200, "blank"
    band, ground = pixels[4, 4], pixels[-4, 2]
    red_over_green = band[0] - band[1]
    assert (red_over_green < -40) if name == "certified" else (red_over_green > 40), (
        "green opens a certified run, red a refused one"
    )
    assert (ground.mean() < 80) == dark
