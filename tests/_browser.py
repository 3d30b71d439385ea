"""A page in headless Chromium, spoken to over its DevTools protocol: sizes, colours, errors, pictures of it."""

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Tab:
    """One tab; `said` keeps errors and warnings of the console, and requests to anything but the page itself."""

    def __init__(self, socket):
        self.socket, self.number, self.said, self.asked = socket, 0, [], []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **params):
        """Ask, and keep what is told in the meantime."""
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": params}))
        while True:
            told = json.loads(self.socket.recv(timeout=60))
            if told.get("id") == self.number:
                assert "error" not in told, told
                return told["result"]
            self._keep(told)

    def _keep(self, told: dict) -> None:
        kind, params = told.get("method"), told.get("params", {})
        level = params.get("type") if kind == "Runtime.consoleAPICalled" else params.get("entry", {}).get("level")
        if kind == "Runtime.exceptionThrown" or level in ("error", "warning"):
            self.said.append(params)
        elif kind == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])

    def look(self, page: Path, width: int, height: int, scheme: str) -> None:
        """Load a file in a window of this size, in the scheme "light" or "dark"."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self("Page.navigate", url=page.resolve().as_uri())
        until = time.monotonic() + 60
        while self.ask("document.readyState") != "complete" or self.ask("location.protocol") != "file:":
            assert time.monotonic() < until, f"{page} did not load within a minute"
            time.sleep(0.02)

    def ask(self, expression: str):
        """The value of a JavaScript expression."""
        told = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def picture(self, file: Path, whole: bool = False) -> None:
        """A PNG of the window, or of the whole page."""
        told = self("Page.captureScreenshot", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(told["data"]))


@contextmanager
def browser(folder: Path) -> Iterator[Tab]:
    """Chromium with a profile of its own in `folder`; ended with the block."""
    from websockets.sync.client import connect

    words = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync",
             "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]  # fmt: skip
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = _port(folder / "DevToolsActivePort", process)
        with urlopen(Request(f"http://127.0.0.1:{port}/json/new", method="PUT")) as told:
            address = json.load(told)["webSocketDebuggerUrl"]
        with connect(address, max_size=None) as socket:
            yield Tab(socket)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _port(file: Path, process: subprocess.Popen) -> int:
    until = time.monotonic() + 60
    while not (file.is_file() and file.read_text().count("\n")):
        assert process.poll() is None, f"Chromium ended with exit status {process.returncode}"
        assert time.monotonic() < until, "Chromium did not answer within a minute"
        time.sleep(0.05)
    return int(file.read_text().split("\n")[0])
