"""The context of a request, and the workspace on behalf of its user."""

import asyncio
import dataclasses
from collections.abc import Iterator

import pytest
from support.databricks_stand_in import (
    ADA_TOKEN,
    APP_USER,
    BOB_TOKEN,
    CLIENT_ID,
    CLIENT_SECRET,
    Workspace,
    remove_credentials,
    serve_workspace,
)

from agent_kit import context as context_module
from agent_kit.context import (
    RequestContext,
    UserTokenMissing,
    current_context,
    get_obo_workspace_client,
    get_request_headers,
    use_context,
)
from agent_kit.databricks import (
    CredentialsError,
    databricks_headers,
    databricks_host,
    get_workspace_client,
    on_databricks_apps,
)


def asked_by(token: str | None) -> RequestContext:
    headers = {"x-forwarded-access-token": token} if token else {}
    return RequestContext(request_id="req_1", headers=headers)


# The context variable


def test_the_context_is_that_of_its_task() -> None:
    async def answer(number: int) -> tuple[str | None, str | None, str | None]:
        with use_context(RequestContext(request_id=f"req_{number}")):
            await asyncio.sleep(0)
            in_thread = await asyncio.to_thread(current_context)
            in_task = await asyncio.create_task(read())
            own = current_context()
        assert current_context() is None
        return tuple(each.request_id if each else None for each in (own, in_thread, in_task))

    async def read() -> RequestContext | None:
        return current_context()

    async def both() -> list[tuple[str | None, ...]]:
        return list(await asyncio.gather(answer(1), answer(2)))

    assert asyncio.run(both()) == [("req_1",) * 3, ("req_2",) * 3]


def test_a_generator_may_be_closed_by_another_task() -> None:
    async def agent():
        with use_context(RequestContext(request_id="req_1")):
            yield "a piece"

    async def run() -> RequestContext | None:
        pieces = agent()
        await asyncio.create_task(anext(pieces))
        await asyncio.create_task(pieces.aclose())
        return current_context()

    assert asyncio.run(run()) is None


def test_headers_and_hints() -> None:
    headers = {"x-forwarded-user": "7@1", "x-forwarded-email": "ada@example.com"}
    context = RequestContext(request_id="req_1", headers=headers)
    assert context.user == "ada@example.com"
    assert context.access_token() is None
    assert dataclasses.replace(context, user="me").user == "me"
    with use_context(context):
        assert get_request_headers() == headers
    assert get_request_headers() == {}


def test_the_context_shows_no_token() -> None:
    assert ADA_TOKEN not in repr(asked_by(ADA_TOKEN))
    assert asked_by(ADA_TOKEN).access_token() == ADA_TOKEN


# Clients


@pytest.fixture
def workspace(monkeypatch: pytest.MonkeyPatch, tmp_path) -> Iterator[Workspace]:
    """A workspace, and an environment that knows no credentials but what a test adds."""
    remove_credentials(monkeypatch, tmp_path / "databrickscfg")
    monkeypatch.setattr(context_module, "_user_clients", context_module._ClientCache())
    get_workspace_client.cache_clear()
    with serve_workspace() as workspace:
        yield workspace
    get_workspace_client.cache_clear()


@pytest.fixture
def local(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A developer's machine: Ada's token in the environment."""
    monkeypatch.setenv("DATABRICKS_HOST", workspace.url)
    monkeypatch.setenv("DATABRICKS_TOKEN", ADA_TOKEN)
    return workspace


@pytest.fixture
def apps(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Databricks Apps: the app's own identity in the environment."""
    monkeypatch.setenv("DATABRICKS_APP_NAME", "my-app")
    monkeypatch.setenv("DATABRICKS_HOST", workspace.url)
    monkeypatch.setenv("DATABRICKS_CLIENT_ID", CLIENT_ID)
    monkeypatch.setenv("DATABRICKS_CLIENT_SECRET", CLIENT_SECRET)
    return workspace


def test_credentials_by_token(local: Workspace) -> None:
    assert not on_databricks_apps()
    assert get_workspace_client().current_user.me().user_name == "ada@example.com"
    assert get_workspace_client() is get_workspace_client()
    assert databricks_host() == local.url
    assert databricks_headers() == {"Authorization": f"Bearer {ADA_TOKEN}"}


def test_credentials_by_profile(workspace: Workspace, tmp_path) -> None:
    profiles = f"[bob]\nhost = {workspace.url}\ntoken = {BOB_TOKEN}\n"
    (tmp_path / "databrickscfg").write_text(profiles)
    assert get_workspace_client("bob").current_user.me().user_name == "bob@example.com"


def test_the_app_acts_as_itself_with_fresh_tokens(apps: Workspace) -> None:
    assert on_databricks_apps()
    assert get_workspace_client().current_user.me().user_name == APP_USER
    first, second = databricks_headers(), databricks_headers()
    assert first != second, "an expired token was not refreshed"
    assert apps.users[second["Authorization"].removeprefix("Bearer ")] == APP_USER


def test_no_credentials_say_what_to_do(workspace: Workspace) -> None:
    with pytest.raises(CredentialsError, match="databricks auth login"):
        get_workspace_client()


def test_an_unknown_profile_says_so(workspace: Workspace, tmp_path) -> None:
    (tmp_path / "databrickscfg").write_text("[other]\nhost = http://localhost:1\n")
    with pytest.raises(CredentialsError, match="has no bob profile"):
        get_workspace_client("bob")


def test_on_behalf_of_the_user_who_asks(apps: Workspace) -> None:
    for token, name in [(ADA_TOKEN, "ada@example.com"), (BOB_TOKEN, "bob@example.com")]:
        with use_context(asked_by(token)):
            assert get_obo_workspace_client().current_user.me().user_name == name


def test_on_behalf_of_concurrent_users(apps: Workspace) -> None:
    async def answer(token: str) -> str | None:
        with use_context(asked_by(token)):
            client = await asyncio.to_thread(get_obo_workspace_client)
            return (await asyncio.to_thread(client.current_user.me)).user_name

    async def both() -> list[str | None]:
        return await asyncio.gather(*map(answer, (ADA_TOKEN, BOB_TOKEN) * 4))

    assert asyncio.run(both()) == ["ada@example.com", "bob@example.com"] * 4


@pytest.mark.parametrize("local_fallback", [False, True])
def test_apps_fail_closed_without_a_token(
    apps: Workspace, monkeypatch: pytest.MonkeyPatch, local_fallback: bool
) -> None:
    monkeypatch.setenv("DATABRICKS_TOKEN", ADA_TOKEN)
    forged = {"x-forwarded-email": "ada@example.com", "authorization": f"Bearer {ADA_TOKEN}"}
    with (
        use_context(RequestContext(request_id="req_1", headers=forged)),
        pytest.raises(UserTokenMissing, match="user authorization") as caught,
    ):
        get_obo_workspace_client(local_fallback=local_fallback)
    assert caught.value.status == 401
    assert apps.calls == []


def test_elsewhere_the_fallback_is_explicit(local: Workspace) -> None:
    with pytest.raises(UserTokenMissing, match="local_fallback=True"):
        get_obo_workspace_client()
    client = get_obo_workspace_client(local_fallback=True)
    assert client.current_user.me().user_name == "ada@example.com"


def test_a_forwarded_token_wins_over_the_fallback(local: Workspace) -> None:
    with use_context(asked_by(BOB_TOKEN)):
        client = get_obo_workspace_client(local_fallback=True)
    assert client.current_user.me().user_name == "bob@example.com"


def test_a_user_s_client_is_cached_under_a_hash(apps: Workspace) -> None:
    with use_context(asked_by(ADA_TOKEN)):
        assert get_obo_workspace_client() is get_obo_workspace_client()
    assert len(apps.called("GET", "/.well-known/databricks-config")) == 1
    assert ADA_TOKEN not in repr(context_module._user_clients._clients.keys())


def test_cached_clients_are_bounded(apps: Workspace) -> None:
    cache = context_module._ClientCache(size=2)
    first = cache.get("token-1")
    cache.get("token-2")
    assert cache.get("token-1") is first
    cache.get("token-3")
    assert len(cache) == 2
    assert cache.get("token-1") is first


def test_idle_clients_are_dropped(apps: Workspace) -> None:
    cache = context_module._ClientCache(idle_seconds=-1)
    assert cache.get("token-1") is not cache.get("token-1")
    assert len(cache) == 0
