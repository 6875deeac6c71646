"""The server's page: what is served, its colours, and a person at a keyboard in a real browser."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from stage1.serving.assets import page_files

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Without the flags of the network a browser looks for its maker's hosts at every start.
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync"


# ---- the files -----------------------------------------------------------------------------------------------------


def test_everything_the_page_names_is_shipped_and_nothing_comes_from_elsewhere() -> None:
    files = page_files()
    names = set()
    for name, body in files.items():
        if name.startswith("vendor/"):
            continue
        text = body.decode()
        assert not re.search(r"""["'(]\s*(https?:)?//""", text), f"{name} names another host"
        folder = name.rpartition("/")[0]
        for wanted in re.findall(r"""from "(\.[^"]+)";""", text):
            parts = [*folder.split("/"), *wanted.split("/")]
            at: list[str] = []
            for part in parts:
                if part == "..":
                    at.pop()
                elif part not in ("", "."):
                    at.append(part)
            names.add("/".join(at))
        names |= {found.removeprefix("page/") for found in re.findall(r'(?:src|href)="(page/[^"]+)"', text)}
    assert names <= set(files)
    assert {name for name in files if name.endswith(".js") and name != "app.js"} <= names, "a script nobody loads"
    assert "MIT License" in files["vendor/LICENSES.txt"].decode()


def _luminance(colour: str) -> float:
    """Of WCAG 2.2, relative."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Of WCAG 2.2.

    >>> round(contrast("#000000", "#ffffff")), round(contrast("#777777", "#ffffff"), 2)
    (21, 4.48)
    """
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


ON_A_GROUND = [
    *((ink, ground) for ink in ("ink", "soft", "link") for ground in ("page", "card", "shade")),
    *((kind, kind + "-pale") for kind in ("good", "warn", "bad")),
    ("card", "ink"),
]
# Edges of controls and marks of a figure: 3 is the bar of WCAG 1.4.11.
MARKS = [("edge", "card"), ("edge", "page"), ("good", "card"), ("warn", "card"), ("focus", "page"), ("focus", "card")]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_contrast_of_every_pair_of_colours(theme: int) -> None:
    blocks = re.findall(r":root \{(.*?)\}", page_files()["style.css"].decode(), re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[theme]))
    assert [pair for pair in ON_A_GROUND if contrast(colours[pair[0]], colours[pair[1]]) < 4.5] == []
    assert [pair for pair in MARKS if contrast(colours[pair[0]], colours[pair[1]]) < 3.0] == []


def test_the_measure_of_contrast_finds_a_pale_pair() -> None:
    assert contrast("#777777", "#ffffff") < 4.5 < contrast("#767676", "#ffffff")


# ---- over HTTP -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(serving, write_bundle, tmp_path_factory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("page")
    bundle = write_bundle(folder / "made")
    keeps = ("--store", folder / "store.db", "--images", folder / "images", "--audit-rate", "1")
    with serving(bundle, "--workers", "1", *keeps) as running:
        yield running


def test_files_come_with_their_kind_and_may_load_nothing_from_elsewhere(server) -> None:
    for path, kind in (("/", "text/html"), ("/page/app.js", "text/javascript"), ("/page/style.css", "text/css")):
        answer = server.client.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(kind)
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        again = server.client.get(path, headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["../app.py", "%2e%2e/app.py", "..%2fapp.py", "/etc/passwd", "views", "", "app.js%00"])
def test_nothing_else_of_the_disk_is_served(server, name: str) -> None:
    answer = server.client.get(f"/page/{name}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


# ---- in a browser --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no chromium here: the page is not used by a person")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: nobody presses keys")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield running
        running.close()


@pytest.fixture
def tab(browser, server) -> Iterator[Any]:
    """A fresh tab at the page that fails the test where a script or the console reports an error."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, base_url=server.address)
    page = context.new_page()
    page.set_default_timeout(30_000)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
    yield page
    context.close()
    assert problems == []


def test_ten_audits_are_labelled_by_keyboard_with_an_undo_and_a_skip(tab, server) -> None:
    for number in range(13):
        for _ in range(2):  # a label is of an image: the same file again is no second audit
            assert server.client.post("/v1/predict", content=numbered(number)).status_code == 200
    tab.goto("/#/audit")
    name = tab.get_by_label("Your name")
    name.wait_for()
    tab.keyboard.press("Tab")
    for _ in range(12):
        if name.evaluate("box => box === document.activeElement"):
            break
        tab.keyboard.press("Tab")
    tab.keyboard.type("Ada s. 1u2")  # its letters are keys of the queue, and must be none within a field
    tab.keyboard.press("Tab")
    tab.get_by_role("img", name="The image to label").wait_for()

    shown = tab.locator("section[aria-label='Image to label'][aria-busy=false] p.about")

    def press(key: str, says: str) -> None:
        """A key, once the picture is there; then what the page says of it, and another picture."""
        before = shown.inner_text()
        tab.keyboard.press(key)
        tab.get_by_text(says).wait_for()
        tab.wait_for_function("before => document.querySelector('p.about').innerText !== before", arg=before)

    press("s", "Skipped")
    press("1", "Labelled none")
    press("u", "The label none is taken back")
    for turn in range(10):
        press("2" if turn % 2 else "1", "Labelled roadwork" if turn % 2 else "Labelled none")
    tab.get_by_text("Labelled roadwork").wait_for()
    tab.get_by_role("link", name="Now").focus()
    tab.keyboard.press("Enter")  # leaving sends the last one
    tab.wait_for_function("() => localStorage.getItem('stage1-labels-to-send') === null")
    rows = server.client.get("/v1/decisions", params={"limit": 1000}).json()["decisions"]
    labels = {(label["who"], row["image_digest"], label["label"]) for row in rows for label in row["labels"]}
    assert len(labels) == 10
    assert sorted(label for _, _, label in labels) == ["none"] * 5 + ["roadwork"] * 5
    assert all(who.endswith("Ada s. 1u2") for who, _, _ in labels)


def numbered(number: int) -> bytes:
    """A small PNG that no other number gives."""
    held = io.BytesIO()
    Image.new("RGB", (40, 30), (20 * number, 60, 90)).save(held, "PNG")
    return held.getvalue()


def test_a_dropped_image_is_answered_as_the_api_does(tab, server, red, tmp_path: Path) -> None:
    (tmp_path / "street.jpg").write_bytes(red)
    tab.goto("/#/try")
    tab.set_input_files("input[type=file]", tmp_path / "street.jpg")
    tab.get_by_text("The first stage answers.").wait_for()
    answer = server.client.post("/v1/predict", content=red).json()["answers"][0]
    assert answer["exit"]
    assert tab.get_by_text(f"{answer['label']}: {100 * answer['probability']:.1f} %").is_visible()
    tab.goto("/#/history")
    row = tab.get_by_role("row").filter(has_text="street.jpg").first
    row.wait_for()
    assert f"{100 * answer['probability']:.1f} %" in row.inner_text()
    tab.goto("/#/now")
    tab.get_by_text("Images in the last hour").wait_for()
    tab.get_by_text("The certificate is valid").first.wait_for()


def test_a_state_that_changes_is_said_within_seconds(tab, server, red) -> None:
    model = server.client.get("/v1/models").json()["models"][0]
    tab.goto("/")
    tab.get_by_text("The certificate is valid").wait_for()
    condition = {"name": "drift", "state": "DEGRADED", "reason": "brightness moved"}
    assert server.client.post(f"/v1/models/{model['name']}/conditions", json=condition).status_code == 200
    tab.get_by_text("Why: brightness moved").wait_for()
    # What is said of the state is what the server does in it: exits go on.
    tab.get_by_text("Images are still answered").wait_for()
    answer = server.client.post("/v1/predict", content=red).json()
    assert (answer["state"], answer["answers"][0]["exit"]) == ("DEGRADED", True)
    assert server.client.delete(f"/v1/models/{model['name']}/conditions/drift").status_code == 200
    tab.get_by_text("The certificate is valid").wait_for()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("view", ["now", "history", "try", "audit", "models"])
def test_no_view_is_wider_than_the_screen(tab, server, red, width: int, view: str) -> None:
    server.client.post("/v1/predict", content=red)
    tab.set_viewport_size({"width": width, "height": 900})
    tab.goto(f"/#/{view}")
    tab.wait_for_load_state("networkidle")
    assert tab.get_by_role("heading", level=1).is_visible()
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


def test_a_server_that_asks_for_a_key_gets_it_once_and_keeps_it_in_the_tab(
    browser, serving, write_bundle, tmp_path: Path
) -> None:
    key, keys = "k" * 40, tmp_path / "keys"
    keys.write_text(f"{hashlib.sha256(key.encode()).hexdigest()} admin ada\n")
    with serving(write_bundle(tmp_path / "made"), "--workers", "1", "--keys", keys, "--store", "none") as running:
        context = browser.new_context(base_url=running.address)
        page = context.new_page()
        page.goto("/#/models")
        page.get_by_label("Key", exact=True).fill("wrong")
        page.get_by_role("button", name="Use this key").click()
        page.get_by_role("alert").first.wait_for()
        page.get_by_label("Key", exact=True).fill(key)
        page.get_by_role("button", name="Use this key").click()
        page.get_by_text("The certificate is valid").wait_for()
        assert page.evaluate("Object.values(localStorage)") == []
        page.get_by_role("button", name="Forget the key").click()
        page.get_by_label("Key", exact=True).wait_for()
        context.close()
