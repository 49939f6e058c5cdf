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
def chromium(playwright, keeps_pages=False):
    """
    Start the system's Chromium, headless and with a fresh profile.

    ``keeps_pages`` enables the back/forward cache, which Playwright disables.
    """
    path = shutil.which("chromium") or shutil.which("google-chrome")
    browser = playwright.chromium.launch(
        executable_path=path,
        args=OPTIONS,
        ignore_default_args=["--disable-back-forward-cache"] if keeps_pages else None,
    )
    try:
        yield browser
    finally:
        browser.close()
