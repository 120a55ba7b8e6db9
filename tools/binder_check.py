"""Rebuild the Binder environment from binder/ and open the lessons through it.

Does what repo2docker does with these files, in a fresh virtual environment instead of a container:
Python of runtime.txt, requirements.txt, postBuild, start. Then it opens pages the way mybinder.org
does, through Jupyter's server extension under a base URL, and checks that widgets are drawn and
that nothing outside this machine is asked for.
"""

import argparse
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parent.parent
ENVIRONMENT = ROOT / ".binder-venv"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CHROMIUM_ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


def step(text: str) -> None:
    print(f"-- {text}", flush=True)


def interpreter() -> str:
    """The Python that runtime.txt names."""
    wanted = (ROOT / "binder" / "runtime.txt").read_text().strip().removeprefix("python-")
    for candidate in (sys.executable, f"python{wanted}"):
        path = shutil.which(candidate)
        if path is None:
            continue
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        if subprocess.check_output([path, "-c", code], text=True).strip() == wanted:
            return path
    raise SystemExit(f"binder/runtime.txt asks for Python {wanted}, which is not on this machine")


def requirements(folder: Path) -> Path:
    """requirements.txt, or where PyTorch's index is out of reach a copy without it."""
    path = ROOT / "binder" / "requirements.txt"
    try:
        urllib.request.urlopen(f"{TORCH_CPU_INDEX}/torch/", timeout=10).close()
    except OSError as error:
        text = path.read_text()
        pin = re.search(r"^torch==(.*)\+cpu$", text, re.M)
        assert pin, "requirements.txt pins no CPU build of torch"
        step(
            f"PyTorch's CPU index cannot be reached ({error}): installing the torch {pin[1]} that "
            "the configured package index has instead"
        )
        text = re.sub(r"^--extra-index-url .*\n", "", text, flags=re.M)
        path = folder / "requirements.txt"
        path.write_text(text.replace(f"torch=={pin[1]}+cpu", f"torch=={pin[1]}"))
    return path


def build() -> dict[str, str]:
    """Install the requirements; the variables under which the environment runs."""
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    began = time.perf_counter()
    python = interpreter()
    subprocess.run([python, "-m", "venv", str(ENVIRONMENT)], check=True)
    home = ENVIRONMENT / "home"  # as fresh as an image's: nothing cached, nothing configured
    home.mkdir()
    variables = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("JUPYTER", "VOILA", "QVIZ", "VIRTUAL_ENV", "PYTHON", "XDG_"))
    }
    variables["PATH"] = f"{ENVIRONMENT / 'bin'}{os.pathsep}{variables['PATH']}"
    pip = [str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    # pip still with the user's own configuration (index, certificates), all else with the new home.
    subprocess.run(
        [*pip, "install", "-qq", "--no-cache-dir", "-r", str(requirements(home))],
        check=True,
        env=variables,
    )
    step(f"requirements installed in {time.perf_counter() - began:.0f} s")
    variables["HOME"] = str(home)
    return variables


def post_build(variables: dict[str, str]) -> None:
    began = time.perf_counter()
    subprocess.run([str(ROOT / "binder" / "postBuild")], check=True, cwd=ROOT, env=variables)
    step(f"postBuild ran in {time.perf_counter() - began:.0f} s")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """`jupyter server` as Binder starts it: binder/start in front, a base URL, a token."""

    def __init__(self, variables: dict[str, str]) -> None:
        self.port = free_port()
        self.token = secrets.token_hex(16)
        self.base = f"http://127.0.0.1:{self.port}/binder/check/"
        self.log = ENVIRONMENT / "server.log"
        command = [
            str(ROOT / "binder" / "start"),
            "jupyter",
            "server",
            "--no-browser",
            "--allow-root",
            f"--port={self.port}",
            "--ServerApp.port_retries=0",
            "--ServerApp.base_url=/binder/check/",
            f"--ServerApp.root_dir={ROOT}",
            f"--IdentityProvider.token={self.token}",
        ]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=variables,
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait(self) -> None:
        for _ in range(300):
            if self.process.poll() is not None:
                raise SystemExit(f"jupyter server ended:\n{self.log.read_text()[-3000:]}")
            try:
                self.get("api/status")
                return
            except OSError:
                time.sleep(0.2)
        raise SystemExit("jupyter server did not answer within a minute")

    def get(self, path: str) -> bytes:
        request = urllib.request.Request(
            self.base + path, headers={"Authorization": f"token {self.token}"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return bytes(answer.read())

    def memory(self) -> float:
        """Megabytes (PSS) of the server and its kernels."""
        import psutil

        family = [psutil.Process(self.process.pid)]
        family += family[0].children(recursive=True)
        return sum(process.memory_full_info().pss for process in family) / 1e6

    def stop(self) -> None:
        # The process group is ours alone (start_new_session).
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)


def chromium() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


def check_in_browser(server: Server, page_name: str, browser_path: str) -> list[str]:
    """Problems with one page; empty when it is as it should be."""
    from playwright.sync_api import sync_playwright

    problems: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=CHROMIUM_ARGUMENTS)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        origin = server.base.split("/binder/")[0]

        def look_at(url: str) -> None:
            if not url.startswith((origin, origin.replace("http", "ws"), "data:", "blob:")):
                problems.append(f"a request left the machine: {url}")

        page.on("request", lambda request: look_at(request.url))
        page.on("websocket", lambda socket: look_at(socket.url))
        page.on(
            "console",
            lambda message: (
                problems.append(f"console error: {message.text}")
                if message.type == "error"
                else None
            ),
        )
        page.on("pageerror", lambda error: problems.append(f"script error: {error}"))
        page.on(
            "response",
            lambda answer: (
                problems.append(f"{answer.status} {answer.url}") if answer.status >= 400 else None
            ),
        )
        began = time.perf_counter()
        page.goto(f"{server.base}voila/render/notebooks/{page_name}?token={server.token}")
        page.wait_for_selector("body[data-qviz-ready]", timeout=90_000)
        seconds = time.perf_counter() - began
        widgets = page.locator(".jupyter-widgets").count()
        if page.locator(".qv-failed").count():
            problems.append("the page says that it could not be built")
        if widgets == 0:
            problems.append("no widget was drawn")
        step(
            f"{page_name}: “{page.title()}”, ready in {seconds:.1f} s, {widgets} widgets, "
            f"{server.memory():.0f} MB for server and kernel"
        )
        # A closed page must end its kernel: a session has 2 GB, and no lesson leaves a note.
        page.goto(f"{server.base}api/status")
        kernels: list[object] = []
        for _ in range(50):
            kernels = json.loads(server.get("api/kernels"))
            if not kernels:
                break
            time.sleep(0.1)
        if kernels:
            problems.append("its kernel still runs five seconds after the page was left")
        browser.close()
    return problems


def check_by_http(server: Server, page_name: str) -> list[str]:
    text = server.get(f"voila/render/notebooks/{page_name}").decode()
    problems = []
    if "application/vnd.jupyter.widget-view+json" not in text:
        problems.append("the page holds no widget")
    if "qv-failed" in text:
        problems.append("the page says that it could not be built")
    problems += [f"refers to {url}" for url in re.findall(r'(?:src|href)="(https?://[^"]+)', text)]
    step(f"{page_name}: {len(text)} bytes (no Chromium here: checked by HTTP only)")
    return problems


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--keep", action="store_true", help="do not install requirements anew")
    options.add_argument("pages", nargs="*", help="notebooks to open (default: all lessons)")
    args = options.parse_args()
    if args.keep and ENVIRONMENT.exists():
        variables = {
            **os.environ,
            "HOME": str(ENVIRONMENT / "home"),
            "PATH": f"{ENVIRONMENT / 'bin'}{os.pathsep}{os.environ['PATH']}",
        }
    else:
        variables = build()
    post_build(variables)
    pages = args.pages or sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
    problems: list[str] = []
    server = Server(variables)
    try:
        server.wait()
        browser = chromium()
        for page in pages:
            found = (
                check_in_browser(server, page, browser) if browser else check_by_http(server, page)
            )
            problems += [f"{page}: {problem}" for problem in found]
        from qviz.ui.extension import plotly_js_name

        try:
            step(f"plotly.js over HTTP: {len(server.get(f'qviz/static/{plotly_js_name()}'))} bytes")
        except urllib.error.HTTPError as error:
            problems.append(f"plotly.js is not served: {error}")
        try:
            server.get("voila/files/pyproject.toml")
            problems.append("pyproject.toml can be read through /voila/files/")
        except urllib.error.HTTPError:
            pass
    finally:
        server.stop()
    for problem in problems:
        print(f"!! {problem}")
    print("Binder check failed." if problems else "Binder check passed.")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
