"""A headless Chromium, and what its pages complained about."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
PATIENCE_MS = 120_000
"""A page is waited for, never timed: the machine may have other work."""

WATCH = """
addEventListener("securitypolicyviolation", (event) => console.error(`policy: ${event.violatedDirective}`), true);
"""
EXPECTED = ("Failed to load resource",)
"""Chromium's own line for a status of 400 and above; the statuses themselves are kept in `refused`."""


def find_chromium() -> str | None:
    """Path of a Chromium; `SLIDEREASON_TEST_CHROMIUM` names another one."""
    return os.environ.get("SLIDEREASON_TEST_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def chromium(path: str) -> Iterator[Browser]:
    """A browser without a screen, until the context ends."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Sight:
    """A page, and what went wrong on it.

    Attributes:
        page: Playwright's.
        url: of the service.
        complaints: errors of scripts and refusals by the page's own policy.
        refused: (status, address) of answers of 400 and above.
    """

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)
    refused: list[tuple[int, str]] = field(default_factory=list)

    def go(self, address: str = "/") -> None:
        """Open an address of the service, as a link from elsewhere would."""
        self.page.goto("about:blank")
        self.page.goto(self.url + address)

    def wait(self, condition: str, given: object = None) -> None:
        """Wait until a JavaScript expression, or a function of `given`, is true.

        Playwright's own way evaluates strings inside the page, which the page's policy forbids.
        """
        end = time.monotonic() + PATIENCE_MS / 1000
        while not self.page.evaluate(condition, given):
            assert time.monotonic() < end, f"it never came true: {condition}"
            self.page.wait_for_timeout(50)

    def shot(self, name: str) -> None:
        """Keep a screenshot in the folder that `SLIDEREASON_TEST_SHOTS` names, for people to look at."""
        folder = os.environ.get("SLIDEREASON_TEST_SHOTS")
        if folder:
            self.page.screenshot(path=Path(folder) / f"{name}.png")


@contextmanager
def sight(browser: Browser, url: str, **look) -> Iterator[Sight]:
    """A page of its own.

    Args:
        browser: opens it.
        url: of the service.
        look: of Playwright's `new_context`, e.g. `viewport`, `color_scheme`.
    """
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **look})
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    seen = Sight(page, url)
    page.add_init_script(WATCH)
    page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    page.on("response", lambda answer: answer.status >= 400 and seen.refused.append((answer.status, answer.url)))

    def heard(message) -> None:
        if message.type == "error" and not message.text.startswith(EXPECTED):
            seen.complaints.append(message.text)

    page.on("console", heard)
    try:
        yield seen
    finally:
        context.close()
