"""A real browser for the tests: Debian's chromium, driven by Playwright."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, Page, expect, sync_playwright
from support.environment import require_command

# Ten times the default of Playwright, since a machine that runs tests may be busy. No test is
# slower for it; a test that requires speed measures it.
PATIENCE_MS = 50_000
expect.set_options(timeout=PATIENCE_MS)

# Without these chromium contacts hosts of its vendor, and needs a GPU and a user's sandbox.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Start chromium. While it is open, this thread cannot run another event loop."""
    executable = require_command("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def open_page(browser: Browser, **options: Any) -> Iterator[Page]:
    """Open a page in a new profile; fail if a script fails or violates the security policy.

    Args:
        browser: The browser that opens the page.
        options: Options of the profile, such as `viewport` or `color_scheme`.
    """
    with browser.new_context(**options) as context:
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        failures: list[str] = []
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.on("dialog", lambda dialog: failures.append(f"a dialog opened: {dialog.message}"))
        page.add_init_script(
            "window.violations = [];"
            "document.addEventListener('securitypolicyviolation',"
            " (event) => window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));"
        )
        yield page
        failures += page.evaluate("window.violations ?? []")
    assert not failures
