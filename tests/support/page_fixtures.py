"""Fixtures of the tests of the page: a browser, and an agent with a script."""

import threading
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page
from support.browser import open_browser, open_page
from support.page_support import Stage, untraced_server
from support.web_stand_in import StandIn, stand_in_server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with open_page(browser) as page:
        yield page


@pytest.fixture(scope="module")
def shared() -> Iterator[Stage]:
    stage = Stage()
    server = untraced_server()
    server.stream()(stage.answer)
    with server.serve() as stage.url:
        yield stage


@pytest.fixture
def stage(shared: Stage) -> Stage:
    """The agent of the module, reset to a greeting."""
    shared.steps, shared.requests, shared.closed = ["Hello"], [], threading.Event()
    return shared


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    with stand_in_server() as stand_in:
        stand_in.info = {"title": "Stand-in", "features": {"background": False}}
        yield stand_in
