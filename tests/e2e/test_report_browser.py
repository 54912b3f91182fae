"""The report in a real browser: no console messages, nothing loaded, nothing cut at a phone's width, all of it by keyboard.

Headless Chromium is driven over its own pipe (the Chrome DevTools Protocol), so that keys are pressed and widths are set as a
user's would be.
"""

from __future__ import annotations

import base64
import fcntl
import io
import itertools
import json
import os
import re
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deploy.bench import bench_models
from deploy.bundle import open_bundle
from deploy.export import export_subnet
from deploy.verify import verify_model
from latency.table_file import SCHEMA
from ofa.artefacts import format_json, read_json, write_json
from ofa.run_dir import Run
from search.report import write_report

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on the PATH to open the report in")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--remote-debugging-pipe",
)
DESKTOP, PHONE = 1280, 390  # px
DEVICE = "ort_cpu_1t"
LONG = "a_name_that_is_too_long_for_the_screen_of_any_phone"  # of a search, an export and a device
ANCHOR = {"then_ms": 0.1, "now_ms": 0.17, "ratio": 1.1, "ratio_low": 1.0, "ratio_high": 1.2}
FIRST_FD = 20  # clear of 3 and 4, where Chromium expects its pipe


class Browser:
    """A headless Chromium with one tab."""

    def __init__(self, profile: Path) -> None:
        theirs_in, ours_out = (_high(fd) for fd in os.pipe())
        ours_in, theirs_out = (_high(fd) for fd in os.pipe())

        def connect() -> None:
            os.dup2(theirs_in, 3)
            os.dup2(theirs_out, 4)

        assert CHROMIUM is not None
        self.process = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=connect,
            pass_fds=(3, 4),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.out, self.source = ours_out, ours_in
        self.numbers, self.buffer, self.session = itertools.count(1), b"", ""
        self.events: list[dict[str, Any]] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def close(self) -> None:
        os.close(self.out)  # which ends it
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.source)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result; events that come meanwhile are kept."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params, **({"sessionId": self.session} if self.session else {})}
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive(method)
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _receive(self, what: str) -> dict[str, Any]:
        end = time.monotonic() + 60
        while b"\0" not in self.buffer:
            assert select.select([self.source], [], [], max(0.0, end - time.monotonic()))[0], f"no answer to {what}"
            part = os.read(self.source, 1 << 20)
            assert part, f"Chromium ended before it answered to {what}"
            self.buffer += part
        line, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(line)
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, path: Path, *, width: int = DESKTOP, dark: bool = False, script: bool = True) -> None:
        """Load a file and wait until all of it is there; what was heard of another page is forgotten."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Emulation.setScriptExecutionDisabled", value=not script)
        self.events.clear()
        answer = self.send("Page.navigate", url=path.as_uri())
        assert "errorText" not in answer, answer
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._receive("the page")
        if script:
            self.ask("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(0))))")

    def ask(self, expression: str) -> Any:
        """Evaluate an expression in the page; not of the page, so that it works where pages may run none."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str, code: int, *, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=text)

    def screenshot(self) -> Image.Image:
        """Take a picture of the whole page."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        found = self.send("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        return Image.open(io.BytesIO(base64.b64decode(found["data"]))).convert("RGB")

    @property
    def messages(self) -> list[str]:
        """All that the console shows, of whatever level."""
        found = []
        for event in self.events:
            params = event["params"]
            if event["method"] == "Runtime.consoleAPICalled":
                found.append(" ".join(str(part.get("value", part)) for part in params["args"]))
            elif event["method"] == "Runtime.exceptionThrown":
                found.append(params["exceptionDetails"]["text"])
            elif event["method"] == "Log.entryAdded":
                found.append(params["entry"]["text"])
        return found

    @property
    def requests(self) -> list[str]:
        return [event["params"]["request"]["url"] for event in self.events if event["method"] == "Network.requestWillBeSent"]


def _high(fd: int) -> int:
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_FD)
    os.close(fd)
    return moved


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def report(trained, tmp_path_factory):
    """The report of a real run: one network as fp32 and as fp16, both proven, and as what is only called int8; long names."""
    path = tmp_path_factory.mktemp("reported") / "digits"
    shutil.copytree(trained.path, path)
    record = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(
        json.dumps({**record, "exports": []})
    )  # other tests may have exported the shared run elsewhere
    export_subnet(path / "search" / "best", path / "export" / "best_fp16", precision="fp16")
    files = [path / "export" / name for name in ("best", "best_fp16")]
    bench_models(files, [DEVICE], batch_sizes=(1, 8), seconds=0.2)
    for file in files:
        verify_model(file, seconds=0.2)
    shutil.copytree(path / "export" / "best_fp16", path / "export" / f"{LONG}_int8")
    bundle = open_bundle(path / "export" / f"{LONG}_int8")
    layers = {f"stage{i}_block{j}.depthwise": "fp32" for i in (1, 2, 3) for j in (0, 1)}
    changed = {"model.json": {"precision": "int8", "layers": layers}, "verify.json": {"ok": False, "anchors": {DEVICE: ANCHOR}}}
    bundle.add({name: format_json({**json.loads(bundle.read(name)), **fields}) for name, fields in changed.items()})
    search = path / "search"
    shutil.copytree(search, search / LONG, ignore=shutil.ignore_patterns("trials*", LONG))
    table = read_json(path / "latency" / f"{DEVICE}.json", schema=SCHEMA)
    write_json(path / "latency" / f"{LONG}.json", {**table, "device": LONG})
    return write_report(Run(path))


def of_all(browser, expression):
    """Evaluate an expression of `e` for every element of the page, and return the results that are not empty."""
    return browser.ask(f"[...document.querySelectorAll('body *')].map(e => {expression}).filter(Boolean)")


OPEN_ALL = "document.querySelectorAll('details').forEach(e => e.open = true)"
NAME = "(e.tagName + ' ' + (e.getAttribute('class') || '') + ' ' + e.textContent.trim().slice(0, 60))"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_page_says_nothing_on_the_console_and_asks_for_nothing(browser, report, tmp_path, width, dark):
    assert report.stat().st_size < 2 * 2**20
    browser.open(report, width=width, dark=dark)
    browser.ask(OPEN_ALL)
    image = browser.screenshot()
    image.save(tmp_path / "report.png")
    assert browser.messages == []
    assert browser.requests == [report.as_uri()]
    assert image.width == width
    pixels = np.asarray(image)[::5, ::5]
    assert (pixels.mean() < 60) == dark  # it follows the system's choice
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100  # and shows something


@pytest.mark.parametrize(
    "fault",
    [
        "<script>undefined_function()</script>",
        "<script>console.error('no')</script>",
        "<script>console.warn('no')</script>",
        "<img src='missing.png'>",
        "<img src='https://example.org/x.png'>",
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'\"><p style='color: red'>",
    ],
)
def test_a_fault_is_heard(browser, tmp_path, fault):
    page = tmp_path / "fault.html"
    page.write_text(f"<!DOCTYPE html><html lang=en><title>x</title>{fault}")
    browser.open(page)
    assert browser.messages or len(browser.requests) > 1
    assert "img" in fault or browser.messages


@pytest.mark.parametrize("width", [320, PHONE, 700, 1000, DESKTOP])
def test_nothing_is_cut(browser, report, width):
    """The page is no wider than the screen; what is wider scrolls by itself, with keys too; letters of drawings stay inside."""
    browser.open(report, width=width)
    browser.ask(OPEN_ALL)
    assert browser.ask("document.documentElement.scrollWidth") <= width
    wide = "e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX === 'auto'"
    assert of_all(browser, f"{wide} && e.tabIndex < 0 && {NAME}") == []
    outside = "(b => b.width && (b.left < -1 || b.right > innerWidth + 1))(e.getBoundingClientRect())"
    hidden = "(e.closest('thead') && getComputedStyle(e.closest('thead')).position === 'absolute')"
    assert of_all(browser, f"{outside} && !e.closest('.scroll, .skip') && !{hidden} && {NAME}") == []
    cut = "((b, s) => b.width && (b.left < s.left - 2 || b.right > s.right + 2))"
    boxes = "(e.getBoundingClientRect(), e.ownerSVGElement.getBoundingClientRect())"
    assert of_all(browser, f"e.tagName === 'text' && {cut}{boxes} && {NAME}") == []


def test_letters_of_a_drawing_do_not_cover_each_other(browser, report):
    for width in (PHONE, DESKTOP):
        browser.open(report, width=width)
        browser.ask(OPEN_ALL)
        found = browser.ask(
            """[...document.querySelectorAll('svg')].flatMap(svg => {
                const boxes = [...svg.querySelectorAll('text')].map(e => [e.textContent, e.getBoundingClientRect()])
                const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
                                    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4
                return boxes.flatMap(([s, a], i) => boxes.slice(i + 1).filter(([t, b]) => s && t && meet(a, b)).map(([t]) => [s, t]))
            })"""
        )
        assert found == []


def test_everything_is_reached_by_keyboard(browser, report):
    browser.open(report)
    wanted = browser.ask(
        """(() => {
            const found = [...document.querySelectorAll('a[href], summary, button, input, [tabindex="0"]')]
            found.forEach((e, i) => e.dataset.stop = i)
            return found.filter(e => e.checkVisibility() && !e.closest('details:not([open]) > :not(summary)')).map(e => e.dataset.stop)
        })()"""
    )
    assert len(wanted) > 20
    reached = []
    for _ in range(len(wanted) + 30):  # Chromium stops at what can be scrolled, too
        browser.press("Tab", 9)
        stop, outline = browser.ask(
            "(e => [e.dataset.stop ?? '', getComputedStyle(e).outlineStyle !== 'none'])(document.activeElement)"
        )
        if stop == "" and len(reached) >= len(wanted):
            break
        assert outline, stop
        reached.append(stop)
    assert [stop for stop in reached if stop] == wanted
    assert reached[0] == "0"
    browser.open(report)
    browser.press("Tab", 9)
    assert browser.ask("document.activeElement.className") == "skip"
    assert browser.ask("document.activeElement.getBoundingClientRect().top") >= 0  # seen once it is reached
    browser.press("Enter", 13, text="\r")
    assert browser.ask("location.hash") == "#networks"
    browser.ask("document.querySelector('details:not([open]) > summary').focus()")
    browser.press("Enter", 13, text="\r")
    assert browser.ask("document.activeElement.parentElement.open") is True


def test_links_lead_to_what_they_name_even_if_it_is_folded_away(browser, report):
    browser.open(report)
    assert of_all(browser, "e.tagName === 'A' && !document.getElementById(decodeURIComponent(e.hash.slice(1))) && e.href") == []
    cards = browser.ask("[...document.querySelectorAll('.card')].map(e => [e.id || e.querySelector('dl').id, e.open = false])")
    assert len(cards) == 3
    for name, _ in cards:
        browser.ask(f"document.querySelector('a[href=\"#{name}\"]').focus()")
        browser.press("Enter", 13, text="\r")
        shown = f"(b => b.bottom > 0 && b.top < innerHeight)(document.getElementById('{name}').getBoundingClientRect())"
        assert browser.ask(f"document.getElementById('{name}').closest('details').open && {shown}"), name


def test_images_have_words_instead(browser, report):
    browser.open(report)
    assert of_all(browser, "e.tagName === 'IMG' && e.outerHTML") == []
    plain = "e.tagName === 'svg' && e.ariaHidden !== 'true' && !(e.role === 'img' && e.ariaLabel)"
    assert of_all(browser, f"{plain} && e.outerHTML.slice(0, 200)") == []
    assert browser.ask("document.querySelectorAll('svg[role=img]').length") > 8
    assert of_all(browser, "e.tagName === 'TABLE' && !e.querySelector('th') && e.outerHTML.slice(0, 200)") == []


def test_it_needs_no_script(browser, report):
    texts = []
    for script in (True, False):
        browser.open(report, script=script)
        texts.append(browser.send("DOM.getOuterHTML", nodeId=browser.send("DOM.getDocument")["root"]["nodeId"])["outerHTML"])
    assert texts[0] == texts[1]
    assert re.search(r"<script|javascript:|\son\w+=", texts[0]) is None


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_letters_stand_out_from_their_background(browser, report, dark):
    """A contrast of 4.5 to 1, as WCAG 2.2 (1.4.3) asks for."""
    browser.open(report, dark=dark)
    browser.ask(OPEN_ALL)
    faint = browser.ask(
        """(() => {
            const parts = text => (text.match(/[\\d.]+/g) || []).map(Number)
            const light = rgb => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => {
                const c = rgb[i] / 255
                return sum + weight * (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
            }, 0)
            const behind = e => {
                for (; e; e = e.parentElement) {
                    const [r, g, b, a = 1] = parts(getComputedStyle(e).backgroundColor)
                    if (a > 0.99) return [r, g, b]
                }
                return [255, 255, 255]
            }
            return [...document.querySelectorAll('main *')].filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
                .filter(e => !['title', 'STYLE'].includes(e.tagName) && !e.matches('.part-text, .se-text'))
                .map(e => {
                    const style = getComputedStyle(e), inside = light(parts(e.ownerSVGElement ? style.fill : style.color))
                    const [low, high] = [inside, light(behind(e))].sort((a, b) => a - b)
                    return [(high + 0.05) / (low + 0.05), e.tagName, e.getAttribute('class'), e.textContent.trim().slice(0, 40)]
                }).filter(([ratio]) => ratio < 4.5)
        })()"""
    )
    assert faint == []
