"""Secrets are removed wherever they are, and nothing else is."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.databricks_stand_in import ADA_TOKEN

from agent_kit.redaction import find_key, has_url_password, is_secret_name, may_hold_secrets, redact

OPENAI_KEY = "sk-proj-" + "Ab1_" * 8
TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhZGEifQ.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("Authorization: Bearer abc123", "Authorization: ***"),
        ("authorization: Basic YWRhOmh1bnRlcjI=, next", "authorization: ***, next"),
        ("curl -H 'Authorization: Bearer abc' x", "curl -H 'Authorization: ***' x"),
        ("sent Bearer abcdefg.123 to it", "sent Bearer *** to it"),
        ("sent BEARER " + "x" * 20, "sent BEARER ***"),
        (f"token {ADA_TOKEN}-2 expired", "token *** expired"),
        (f"key={OPENAI_KEY}.", "key=***."),
        (f"a web token {TOKEN}!", "a web token ***!"),
        ("Cookie: session=1; user=ada\nHost: x", "Cookie: ***\nHost: x"),
        ("Set-Cookie: session=1; Path=/", "Set-Cookie: ***"),
        ("x-forwarded-access-token: abc", "x-forwarded-access-token: ***"),
        ("postgresql://ada:hunter2@db/kit", "postgresql://ada:***@db/kit"),
        ("https://:hunter2@host/", "https://:***@host/"),
        ("password=hunter2&next=1", "password=***&next=1"),
        ("OPENAI_API_KEY=hunter2 agent-server", "OPENAI_API_KEY=*** agent-server"),
        ("{'authorization': 'Digest a b', 'x': 1}", "{'authorization': '***', 'x': 1}"),
        ('{"client_secret":"a\\\\b c"}', '{"client_secret":"***"}'),
        (
            r'{"arguments": "{\"api_key\": \"hunter2\"}"}',
            r'{"arguments": "{\"api_key\": \"***\"}"}',
        ),
        ("AKIA" + "A1" * 8, "***"),
        ("remote: ghp_" + "a1B2" * 9, "remote: ***"),
        ("-----BEGIN RSA PRIVATE KEY-----", "***"),
        ("[(b'authorization', b'Basic YQ==')]", "[(b'authorization', b'***')]"),
    ],
)
def test_secrets_are_hidden(text: str, safe: str) -> None:
    assert redact(text) == safe
    assert redact(safe) == safe


@pytest.mark.parametrize(
    "text",
    [
        "What is a token? And a key?",
        "The bearer of this letter",
        "https://example.com:8000/path?x=1 and ada@example.com",
        "Usage: max_output_tokens=5, total_tokens: 7",
        "risk-averse-people-of-all-kinds and task-oriented-work",
        "keys: value, tokens: 3",
        '["cookie", "cake"]',
        "",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) is text


def test_nested_values_are_searched() -> None:
    value = {
        "headers": {"Authorization": "anything", "Accept": "text/html"},
        "api_key": ["hunter2"],
        "properties": {"password": {"type": "string"}},
        "items": ({"password": "hunter2"}, f"see {OPENAI_KEY}", 5, None),
        "usage": {"total_tokens": 5, "token": "Hello"},
    }
    assert redact(value) == {
        "headers": {"Authorization": "***", "Accept": "text/html"},
        "api_key": "***",
        "properties": {"password": {"type": "string"}},
        "items": ({"password": "***"}, "see ***", 5, None),
        "usage": {"total_tokens": 5, "token": "Hello"},
    }


def test_a_value_without_secrets_is_not_copied() -> None:
    value = {"input": [{"role": "user", "content": "hello"}], "n": float("nan"), 5: object()}
    assert redact(value) is value


@given(st.text(), st.sampled_from(["{}", '"{}"', "({})", "x {}, y", "\n{}\n"]))
def test_a_known_token_is_hidden_in_any_text(text: str, frame: str) -> None:
    for secret in (ADA_TOKEN, OPENAI_KEY, f"Bearer {TOKEN}"):
        assert secret not in redact(text + " " + frame.replace("{}", secret))


@given(
    st.recursive(
        st.none() | st.text() | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_redacted_json_stays_json(value: object) -> None:
    redacted = redact(value)
    assert type(redacted) is type(value)
    json.loads(redact(json.dumps({"value": value, "api_key": "hunter2"})))


SECRET_NAMES = (
    *("Authorization", "proxy-authorization", "Cookie", "set-cookie", "password", "passwd"),
    *("x-forwarded-access-token", "api_key", "x-api-key", "apikey", "OPENAI_API_KEY"),
    *("client_secret", "access_token", "refresh-token", "MY_TOKEN", "my_secret"),
)


@given(
    st.recursive(
        st.none() | st.text() | st.sampled_from([OPENAI_KEY, ADA_TOKEN, "https://a:b@c"]),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.sampled_from([*SECRET_NAMES, "tokens"]), inner)
        ),
    )
)
def test_where_nothing_is_suspected_nothing_is_found(value: object) -> None:
    text = json.dumps(value, ensure_ascii=False)
    assert may_hold_secrets(text) or redact(value) == value


def test_the_counts_of_tokens_are_no_suspects() -> None:
    assert not may_hold_secrets('{"output_tokens_details": {"reasoning_tokens": 0}}')


@pytest.mark.parametrize(
    ("text", "position"),
    [
        (f"key = {OPENAI_KEY}", 6),
        (f"{ADA_TOKEN} and {OPENAI_KEY}", 0),
        ("the id AKIA" + "A1" * 8, 7),
        ("a task-oriented agent, sk-short", None),
        ("AKIA is a prefix", None),
    ],
)
def test_a_key_is_found_by_its_form(text: str, position: int | None) -> None:
    assert find_key(text) == position


def test_names_and_urls_of_secrets() -> None:
    assert is_secret_name("OPENAI_API_KEY")
    assert is_secret_name("credential")
    assert not is_secret_name("base_url")
    assert has_url_password("postgresql://ada:hunter2@db/kit")
    assert not has_url_password("http://ada@host:80/v1")
