"""Fixtures of the tests of the page: a browser, an agent that plays what a test writes."""

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
def theatre() -> Iterator[Stage]:
    stage = Stage()
    server = untraced_server()
    server.stream()(stage.answer)
    with server.serve() as stage.url:
        yield stage


@pytest.fixture
def stage(theatre: Stage) -> Stage:
    """The module's agent, with nothing to play but a greeting."""
    theatre.steps, theatre.requests, theatre.closed = ["Hello"], [], threading.Event()
    return theatre


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    with stand_in_server() as stand_in:
        stand_in.info = {"title": "Stand-in", "features": {"background": False}}
        yield stand_in
