"""A real browser for the tests."""

import contextlib
import shutil

OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@contextlib.contextmanager
def chromium(playwright):
    """Start the system's Chromium, headless and with a fresh profile."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    browser = playwright.chromium.launch(executable_path=path, args=OPTIONS)
    try:
        yield browser
    finally:
        browser.close()
