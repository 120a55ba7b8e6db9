"""The pages in a real Chromium: keypress to paint, opening time, bytes and memory.

    python bench/pages.py                 all of it, some minutes for each lesson
    python bench/pages.py --quick         fewer repeats
    python bench/pages.py --only gptq     pages whose notebook has this in its name

Keypress to paint runs from the browser's own time stamp of the key event to the frame after the
drawing was done. plotly's FigureWidget heatmap stands beside MatrixView in the same run. Of every
lesson, and of each part of one, the slider that leads is moved, and what the browser then shows by
itself is found by moving it: a lesson to come is measured without a line here.
"""

import argparse
import json
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from statistics import median, quantiles
from typing import Any

import nbformat
import psutil
from delay_proxy import delaying_proxy
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import Browser, Page, sync_playwright
from record import save

from qviz.ui.views.lessons import LESSONS, Lesson

CHROMIUM = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run",
]  # fmt: skip
ROUND_TRIP = 0.150
NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
# What a page shows first: a picture, a chart, or (GPTQ by hand) a table of numbers.
PAINTED = "[data-qv-painted] canvas, .qv-chart .js-plotly-plot, .qv-main td"

MATRIX = """
import numpy as np
from qviz.ui.widgets import MatrixView, Slider, link, page
rng = np.random.default_rng(0)
slider = Slider("Bits", [str(b) for b in range(2, 9)], 3)
w = rng.standard_normal(({n}, {n})).astype("float32")
view = MatrixView("W", [np.round(w * 2**b) / 2**b for b in range(7)])
link(slider, "index", (view, "frame"))
page("bench", controls=[slider], main=[view])
"""
HEATMAP = """
import numpy as np, ipywidgets as widgets, plotly.graph_objects as go
rng = np.random.default_rng(0)
w = rng.standard_normal(({n}, {n})).astype("float32")
frames = [np.round(w * 2**b) / 2**b for b in range(7)]
figure = go.FigureWidget(go.Heatmap(z=frames[3]))
slider = widgets.IntSlider(value=3, min=0, max=6, description="Bits")
def show(change):
    figure.data[0].z = frames[change["new"]]
slider.observe(show, "value")
widgets.VBox([slider, figure])
"""

# Resolves with milliseconds from key to drawn, of everything that has to be drawn. Drawn is one
# animation frame and one task after the last widget said so: the frame is with the compositor.
WATCH = """
(what) => {
  const state = (window.bench = { key: 0, waiting: new Set(), done: null });
  const finish = () => requestAnimationFrame(() => setTimeout(() => {
    if (state.done) { state.done(performance.now() - state.key); state.done = null; }
  }));
  const hit = (el) => { if (state.waiting.delete(el) && !state.waiting.size) finish(); };
  addEventListener("keydown", (e) => { state.key = e.timeStamp; }, true);
  const drawn = [...document.querySelectorAll(what === "plotly" ? ".js-plotly-plot" : what)];
  if (what === "plotly") for (const gd of drawn) gd.on("plotly_afterplot", () => hit(gd));
  else addEventListener("qv-painted", (e) => hit(e.target));
  state.expect = () => new Promise((resolve) => {
    state.waiting = new Set(drawn);
    state.done = resolve;
  });
  return drawn.length;
}
"""
# What shows another frame at every one of the keys pressed between the two: tied to the slider in
# the browser. What the kernel draws anew keeps its frame. Marks it, and says how much there is.
LISTEN = """() => {
  const seen = (window.benchSeen = new Map());
  const frames = new Map();
  window.benchListen?.abort();
  const stop = (window.benchListen = new AbortController());
  addEventListener("qv-painted", ({ target, detail }) => {
    if (frames.get(target) !== detail.frame) seen.set(target, (seen.get(target) ?? 0) + 1);
    frames.set(target, detail.frame);
  }, { signal: stop.signal });
}"""
MARK = """(presses) => {
  window.benchListen.abort();
  for (const el of document.querySelectorAll("[data-bench]")) delete el.dataset.bench;
  for (const [el, times] of window.benchSeen)
    if (times >= presses && el.getClientRects().length)
      el.dataset.bench = el.classList.contains("qv-chart") ? "chart" : "picture";
  return ["picture", "chart"].map((kind) =>
    document.querySelectorAll(`[data-bench=${kind}]`).length);
}"""
PICTURES, ALL_OF_IT = "[data-bench=picture]", "[data-bench]"
LEAD = ".qv-lead .qv-range:visible, .qv-transport .qv-range:visible"


# Resolves with milliseconds from an input event of the steps' bar, or a key on it, to the frame
# after both pictures of the run showed that step.
STEPS = """
([key, value]) => new Promise((resolve) => {
  const bar = document.querySelector(".qv-transport .qv-range");
  const waiting = new Set([...document.querySelectorAll(".qv-matrix")].slice(0, 2));
  const target = key ? Number(bar.value) + 1 : value;
  let start = 0;
  const seen = (e) => {
    if (e.detail.frame !== target || !waiting.delete(e.target) || waiting.size) return;
    removeEventListener("qv-painted", seen);
    requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - start)));
  };
  addEventListener("qv-painted", seen);
  start = performance.now();
  if (key) bar.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  else {
    bar.value = value;
    bar.dispatchEvent(new Event("input", { bubbles: true }));
  }
})
"""


@contextmanager
def server(notebooks: Path) -> Iterator[tuple[int, psutil.Process]]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "qviz", "serve", "--no-browser", "--no-token"]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--notebooks", str(notebooks)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        for _ in range(600):
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)


def write_notebooks(folder: Path) -> None:
    pages = {"00_start.ipynb": "print('bench')"}
    for n in (256, 1024):
        pages[f"matrix_{n}.ipynb"] = MATRIX.format(n=n)
        pages[f"heatmap_{n}.ipynb"] = HEATMAP.format(n=n)
    for name, code in pages.items():
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
        nbformat.write(new_notebook(cells=[new_code_cell(code)], metadata=kernel), folder / name)


def press_and_time(page: Page, slider: Any, drawn: str, presses: int) -> list[float]:
    """Milliseconds from keypress to paint of all `drawn`."""
    slider.focus()
    page.keyboard.press("End")  # where the first keys below lead away from
    page.wait_for_timeout(600)
    assert page.evaluate(WATCH, drawn) > 0, f"nothing to watch: {drawn}"
    # Never past an end, where nothing would be drawn.
    keys = ["ArrowLeft", "ArrowLeft", "ArrowRight", "ArrowRight"] * (presses // 4 + 1)
    times = []
    for key in keys[: presses + 2]:
        page.evaluate("() => { window.bench.result = window.bench.expect(); }")
        page.keyboard.press(key)
        times.append(page.evaluate("() => window.bench.result"))
        page.wait_for_timeout(120)  # a single change, not a movement
    return times[2:]  # the first two warm the page up


def find_what_follows(page: Page, slider: Any) -> tuple[int, int]:
    """Marks what the slider moves by itself, and counts it: pictures and tables, charts."""
    slider.focus()
    page.keyboard.press("End")
    page.wait_for_timeout(1500)
    page.evaluate(LISTEN)
    keys = ["ArrowLeft", "ArrowLeft", "ArrowRight"]
    for key in keys:
        page.keyboard.press(key)
        page.wait_for_timeout(1500)
    pictures, charts = page.evaluate(MARK, len(keys))
    return pictures, charts


def spread(times: list[float]) -> dict[str, float]:
    return {"p50, ms": median(times), "p95, ms": quantiles(times, n=20)[-1]}


def latencies(browser: Browser, presses: int) -> list[dict[str, Any]]:
    """Rows of keypress-to-paint for the bench notebooks, near and far."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_notebooks(Path(folder))
        runs = [
            ("MatrixView 256²", "matrix_256", ".qv-range", ".qv-matrix", presses),
            ("MatrixView 1024²", "matrix_1024", ".qv-range", ".qv-matrix", presses),
            ("FigureWidget heatmap 256²", "heatmap_256", ".noUi-handle", "plotly", 8),
            ("FigureWidget heatmap 1024²", "heatmap_1024", ".noUi-handle", "plotly", 8),
        ]
        with server(Path(folder)) as (port, _):
            wait_for_warm_kernels()
            with delaying_proxy(port, ROUND_TRIP) as far:
                for name, notebook, slider, drawn, few in runs:
                    for at, trip in ((port, "none"), (far, "150 ms")):
                        page = open_page(browser, at, notebook, slider, drawn)
                        times = press_and_time(page, page.locator(slider).first, drawn, few)
                        page.close()
                        rows.append(row_of(name, trip, times))
    return rows


def row_of(what: str, trip: str, times: list[float]) -> dict[str, Any]:
    row = {"what": what, "added round trip": trip, **spread(times), "presses": len(times)}
    print(row, flush=True)
    return row


def lessons_led(browser: Browser, lessons: list[Lesson], presses: int) -> list[dict[str, Any]]:
    """Rows of keypress-to-paint of the slider that leads in every part of these lessons."""
    rows: list[dict[str, Any]] = []
    with server(NOTEBOOKS) as (port, _):
        wait_for_warm_kernels()
        with delaying_proxy(port, ROUND_TRIP) as far:
            for lesson in lessons:
                for at, trip in ((port, "none"), (far, "150 ms")):
                    name = Path(lesson.notebook).stem
                    page = open_page(browser, at, name, ".qv-range:visible", "")
                    for part in parts_of(page):
                        rows += led(page, lesson, part, trip, presses)
                    page.close()
    return rows


def parts_of(page: Page) -> list[str]:
    """The names of a lesson's parts; one without a name where it has none."""
    names = page.get_by_role("group", name="Part", exact=True).locator("label").all_inner_texts()
    return [name.strip() for name in names] or [""]


def led(page: Page, lesson: Lesson, part: str, trip: str, presses: int) -> list[dict[str, Any]]:
    """Rows of one part: its pictures, and with its charts."""
    what = f"{lesson.title}{f', {part}' if part else ''}"
    if part:
        page.get_by_role("radio", name=part, exact=True).check(force=True)
        page.wait_for_timeout(6000)
    slider = page.locator(LEAD).first
    if not slider.count():
        print(f"{what}: no slider leads", flush=True)
        return []
    pictures, charts = find_what_follows(page, slider)
    rows = []
    for drawn, there, said in (
        (PICTURES, pictures, "pictures and tables"), (ALL_OF_IT, charts, "and charts"),
    ):  # fmt: skip
        if there:
            times = press_and_time(page, slider, drawn, presses)
            rows.append(row_of(f"{what}: {said}", trip, times))
    return rows


def walking(browser: Browser, repeats: int) -> list[dict[str, Any]]:
    """Rows of input-to-paint of the GPTQ lesson, whose layer has 1024 columns: one step, a scrub
    in small moves at 60 a second, and jumps to anywhere; near and far."""
    rows = []
    random = Random(0)
    with server(NOTEBOOKS) as (port, _):
        wait_for_warm_kernels()
        with delaying_proxy(port, ROUND_TRIP) as far:
            for at, trip in ((port, "none"), (far, "150 ms")):
                lesson = "07_gptq#part=a+real+layer"
                page = open_page(browser, at, lesson, ".qv-transport .qv-range", ".qv-matrix")
                page.wait_for_selector(".qv-chart .js-plotly-plot", timeout=120_000)
                steps = [("ArrowRight", 0)] * repeats
                scrub = [(None, 100 + 7 * i) for i in range(repeats)]
                jumps = [(None, random.randrange(1024)) for _ in range(repeats)]
                for what, moves, pause in (
                    ("one step, at rest", steps, 250),
                    ("scrub", scrub, 16),
                    ("jump", jumps, 250),
                ):
                    times = []
                    for move in moves:
                        times.append(page.evaluate(STEPS, list(move)))
                        page.wait_for_timeout(pause)
                    rows.append(row_of(f"GPTQ lesson, {what}", trip, times[2:]))
                page.close()
    return rows


def open_page(browser: Browser, port: int, notebook: str, slider: str, drawn: str) -> Page:
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    name, _, state = notebook.partition("#")
    page.goto(f"http://127.0.0.1:{port}/voila/render/{name}.ipynb#{state}", timeout=120_000)
    page.wait_for_selector(slider, timeout=120_000)
    ready = ".js-plotly-plot .heatmaplayer" if drawn == "plotly" else PAINTED
    page.wait_for_selector(ready, timeout=120_000, state="attached")
    page.wait_for_timeout(2500)
    return page


def wait_for_warm_kernels() -> None:
    """The kernels of the pool start one after the other; measure when they rest."""
    time.sleep(5)
    for _ in range(20):
        if psutil.cpu_percent(2) < 25:
            return
    print("the machine does not come to rest: other programs distort these figures")


def openings(browser: Browser, only: str, repeats: int) -> list[dict[str, Any]]:
    """Time to first interaction, bytes and memory of every page, from a warm server."""
    rows = []
    with server(NOTEBOOKS) as (port, process):
        names = sorted(p.stem for p in NOTEBOOKS.glob("[0-9]*.ipynb"))
        for notebook in (name for name in names if only in name):
            tries = []
            for _ in range(repeats):
                wait_for_warm_kernels()
                tries.append(open_once(browser, port, notebook, process))
            rows.append({"page": notebook, "opened": repeats, **middle(tries)})
            print(rows[-1], flush=True)
    return rows


def open_once(
    browser: Browser, port: int, notebook: str, process: psutil.Process
) -> dict[str, float]:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    bytes_of = {"websocket": 0, "http": 0}
    kernels: list[str] = []

    def on_socket(ws: Any) -> None:
        kernels.extend(re.findall(r"/api/kernels/([0-9a-f-]+)/", ws.url))
        ws.on("framereceived", lambda payload: count("websocket", len(payload)))

    def count(kind: str, n: float) -> None:
        bytes_of[kind] += int(n)

    page.on("websocket", on_socket)
    network = context.new_cdp_session(page)
    network.send("Network.enable")
    network.on("Network.loadingFinished", lambda e: count("http", e["encodedDataLength"]))
    start = time.perf_counter()
    page.goto(f"http://127.0.0.1:{port}/voila/render/{notebook}.ipynb", timeout=120_000)
    page.wait_for_selector(".qv-range:visible", timeout=120_000)  # folded ones come first
    page.wait_for_selector(PAINTED, timeout=120_000, state="attached")
    ready = time.perf_counter() - start
    page.wait_for_timeout(4000)
    memory = kernel_memory(process, kernels[-1])
    context.close()
    return {
        "to first interaction, s": ready,
        "websocket, MB": bytes_of["websocket"] / 1e6,
        "http, MB": bytes_of["http"] / 1e6,
        "kernel PSS, MB": memory,
    }


def kernel_memory(server_process: psutil.Process, kernel: str) -> float:
    for child in server_process.children(recursive=True):
        if any(kernel in part for part in child.cmdline()):
            return child.memory_full_info().pss / 1e6
    raise RuntimeError(f"no process of kernel {kernel}")


def middle(tries: list[dict[str, float]]) -> dict[str, float]:
    return {key: median(t[key] for t in tries) for key in tries[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repeats, which the record says")
    parser.add_argument("--only", metavar="NAME", default="", help="of pages with this name alone")
    options = parser.parse_args()
    quick, only = options.quick, options.only
    lessons = [lesson for lesson in LESSONS if only in lesson.notebook]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=CHROMIUM)
        opened = openings(browser, only, 2 if quick else 5)
        walked = walking(browser, 12 if quick else 60) if only in "07_gptq" else []
        pressed = [] if only else latencies(browser, 12 if quick else 48)
        pressed += lessons_led(browser, lessons, 12 if quick else 48)
        browser.close()
    if only:  # a part is no record
        print(json.dumps([opened, walked, pressed], indent=1))
        return
    print(save("pages_latency", "Keypress to paint in Chromium", pressed + walked).read_text())
    notes = (
        "From a warm server, empty browser cache, to the first slider and painted matrix (median). "
        "PSS of the page's kernel after opening; HTTP counts compressed bytes, plotly.js too."
    )
    print(save("pages_opening", "Opening a page", opened, notes).read_text())


if __name__ == "__main__":
    main()
