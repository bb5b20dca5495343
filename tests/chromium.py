"""Chromium without a screen, driven by its DevTools protocol over two pipes: no driver program, no package, no port."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from select import select
from types import TracebackType
from typing import Any

PROGRAM = shutil.which("chromium")
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",  # commands are read from descriptor 3, answers written to 4
)
_PATIENCE_S = 60.0


class Browser:
    """One page of one browser.

    Attributes:
        complaints: errors and warnings of the page's console, uncaught exceptions among them.
        requests: addresses that the page asked for.
    """

    def __init__(self, profile: Path, size: tuple[int, int] = (1280, 900)) -> None:
        assert PROGRAM is not None
        its_input, self._output = os.pipe()
        self._input, its_output = os.pipe()
        flags = [*_FLAGS, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{its_input} 4>&{its_output}', "bash", PROGRAM, *flags],
            pass_fds=(its_input, its_output),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for descriptor in (its_input, its_output):
            os.close(descriptor)
        self._unread, self._number, self._session = b"", 0, ""
        self.complaints: list[str] = []
        self.requests: list[str] = []
        target = next(found for found in self.call("Target.getTargets")["targetInfos"] if found["type"] == "page")[
            "targetId"
        ]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in (self._output, self._input):
            os.close(descriptor)  # it ends when its pipe does
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command of the protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._output, json.dumps(message).encode() + b"\0")
        for answer in self._messages():
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return dict(answer["result"])
            self._note(answer)
        raise RuntimeError(f"{method}: the browser ended")

    def open(self, page: Path) -> None:
        """Opens a file and waits until it is loaded."""
        self.call("Page.navigate", url=page.as_uri())
        self.wait_for("document.readyState === 'complete'")

    def value(self, expression: str) -> Any:
        """The value of JavaScript, awaited."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Waits, a minute at most, until JavaScript is true."""
        pause = "await new Promise((go) => setTimeout(go, 20))"
        arrival = (
            f"(async () => {{ const end = Date.now() + {_PATIENCE_S * 1000};"
            f" while (!({condition})) {{ if (Date.now() > end) return false; {pause}; }} return true; }})()"
        )
        assert self.value(arrival), f"never came: {condition}"

    def click(self, selector: str) -> None:
        """A click of the mouse in the middle of an element."""
        x, y = self.value(
            f"(() => {{ const it = document.querySelector({json.dumps(selector)});"
            " it.scrollIntoView({block: 'center'}); const box = it.getBoundingClientRect();"
            " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        """A key, for whatever has the focus: ``ArrowRight``, ``Tab``."""
        code = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9, "Enter": 13}[key]
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def prefer(self, scheme: str) -> None:
        """Sets ``prefers-color-scheme``."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def picture(self, **area: Any) -> bytes:
        """PNG of the window, or of a ``clip`` of the page."""
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=bool(area), **area)["data"])

    def _messages(self) -> Iterator[dict[str, Any]]:
        while True:
            message, end, rest = self._unread.partition(b"\0")
            if end:
                self._unread = rest
                yield json.loads(message)
                continue
            if not select([self._input], [], [], 2 * _PATIENCE_S)[0]:
                raise TimeoutError(f"the browser said nothing for {2 * _PATIENCE_S:.0f} s")
            if not (more := os.read(self._input, 1 << 20)):
                return
            self._unread += more

    def _note(self, message: dict[str, Any]) -> None:
        kind, content = message.get("method"), message.get("params", {})
        if kind == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(content["exceptionDetails"]))
        elif kind == "Log.entryAdded" and content["entry"]["level"] in ("error", "warning"):
            self.complaints.append(content["entry"]["text"])
        elif kind == "Runtime.consoleAPICalled" and content["type"] in ("error", "warning", "assert"):
            self.complaints.append(json.dumps(content["args"]))
        elif kind == "Network.requestWillBeSent":
            self.requests.append(content["request"]["url"])
