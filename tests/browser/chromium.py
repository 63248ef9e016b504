# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A headless Chromium, spoken to by its DevTools protocol through two pipes: no port, nothing else to install."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import subprocess
from pathlib import Path
from typing import Any

ARGUMENTS = (
    "--headless",
    # As root there is no sandbox; what is shown here is ours.
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


class Chromium:
    """One page of a browser of its own."""

    def __init__(self, profile: Path) -> None:
        reading, told = os.pipe()
        said, writing = os.pipe()
        # The browser has them as 3 and 4, whatever these are here.
        ends = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, 10) for one in (reading, writing)]
        os.close(reading)
        os.close(writing)
        self.process = subprocess.Popen(
            ["chromium", *ARGUMENTS, f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=lambda: (os.dup2(ends[0], 3), os.dup2(ends[1], 4)),
            pass_fds=(3, 4),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for one in ends:
            os.close(one)
        self.told, self.said = told, said
        self.rest = bytearray()
        self.number = 0
        self.session: str | None = None
        self.events: list[dict[str, Any]] = []
        (page,) = [one for one in self.ask("Target.getTargets")["targetInfos"] if one["type"] == "page"]
        self.session = self.ask("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log", "DOM"):
            self.ask(f"{domain}.enable")

    def close(self) -> None:
        self.session = None
        self.ask("Browser.close")
        self.process.wait()
        os.close(self.told)
        os.close(self.said)

    def message(self) -> dict[str, Any]:
        """The next thing that the browser says; it ends with a NUL."""
        while (end := self.rest.find(b"\0")) < 0:
            data = os.read(self.said, 1 << 20)
            assert data, "chromium ended"
            self.rest += data
        found: dict[str, Any] = json.loads(self.rest[:end])
        del self.rest[: end + 1]
        return found

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        request: dict[str, Any] = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            request["sessionId"] = self.session
        data = json.dumps(request).encode() + b"\0"
        while data:
            data = data[os.write(self.told, data) :]
        while True:
            answer = self.message()
            if answer.get("id") == self.number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])
            self.events.append(answer)

    def wait_for(self, event: str) -> None:
        while not any(one.get("method") == event for one in self.events):
            self.events.append(self.message())

    def show(
        self, path: Path, width: int = 1280, height: int = 900, scheme: str = "light", *, script: bool = True
    ) -> None:
        """Opens a file by its file: URL in a window of that size, with that colour scheme."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.ask("Emulation.setEmulatedMedia", features=features)
        self.ask("Emulation.setScriptExecutionDisabled", value=not script)
        phone = {"deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, **phone)
        for url in ("about:blank", path.as_uri()):
            self.events.clear()
            self.ask("Page.navigate", url=url)
            self.wait_for("Page.loadEventFired")

    def run(self, script: str) -> Any:
        """What an expression is in the page, as JSON has it."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str, code: int, text: str = "") -> None:
        for kind in ("rawKeyDown", "char", "keyUp") if text else ("rawKeyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, text=text)

    def picture(self, path: Path, *, whole: bool = False, height: int | None = None) -> None:
        """What is seen, or the whole page, as PNG."""
        more: dict[str, Any] = {"captureBeyondViewport": True} if whole else {}
        if whole:
            size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
            most = min(size["height"], height or size["height"])
            more["clip"] = {"x": 0, "y": 0, "width": size["width"], "height": most, "scale": 1}
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png", **more)["data"]))
