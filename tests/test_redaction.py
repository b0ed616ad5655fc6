"""Secrets are removed wherever they are, and nothing else is."""

import itertools
import json
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.databricks_stand_in import ADA_TOKEN

from agent_kit import redaction
from agent_kit.redaction import find_key, has_url_password, is_secret_name, may_hold_secrets, redact

OPENAI_KEY = "sk-proj-" + "Ab1_" * 8
LINES = "\n".join(["MIIEpAIBAAKCAQEA" * 4] * 3)
PEM = f"-----BEGIN RSA PRIVATE KEY-----\n{LINES}\n3q2+7w==\n-----END RSA PRIVATE KEY-----"
PGP = f"-----BEGIN PGP PRIVATE KEY BLOCK-----\n\n{LINES}\n-----END PGP PRIVATE KEY BLOCK-----"
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
        (f"before\n{PEM}\nafter", "before\n***\nafter"),
        (json.dumps({"key": PEM, "next": 1}), '{"key": "***", "next": 1}'),
        (PEM.replace("\n", "\nProc-Type: 4,ENCRYPTED\n\n", 1), "***"),
        (PGP, "***"),
        (PEM[:150] + " was cut off", "*** was cut off"),
        ("it begins with -----BEGIN PRIVATE KEY----- as always", "it begins with *** as always"),
        ("id ASIA" + "B2" * 8, "id ***"),
        ("AWS_SECRET_ACCESS_KEY=wJalr/XUtn+FEMI", "AWS_SECRET_ACCESS_KEY=***"),
        (
            '{"SecretAccessKey": "a/b+c", "SessionToken": "d"}',
            '{"SecretAccessKey": "***", "SessionToken": "***"}',
        ),
        ("github_pat_" + "a1B2" * 10 + " ghu_" + "a1B2" * 9, "*** ***"),
        ("glpat-" + "aB3-" * 5 + ".01.0a1b2c3d", "***"),
        ("glrt-" + "aB3_" * 5, "***"),
        ("xoxb-1234567890-abcDEF xapp-1-A0123456789", "*** ***"),
        ("xoxe.xoxp-1-" + "Mi0y" * 8, "***"),
        ("https://hooks.slack.com/services/T00000000/B00000000/abc", "https://***"),
        ("AIza" + "Sy_-1" * 7, "***"),
        ("ya29." + "a0Af-" * 8, "***"),
        ("GOCSPX-" + "a1_-" * 7, "***"),
        ("sk-ant-api03-" + "aB3-" * 8, "***"),
        ("dose" + "0123456789abcdef" * 2, "***"),
        ("PRIVATE-TOKEN: abc", "PRIVATE-TOKEN: ***"),
        ("x-goog-api-key: abc", "x-goog-api-key: ***"),
        ("https://ada:hun@ter2@host/x", "https://ada:***@host/x"),
        (f"-{TOKEN}", "-***"),
        ("eyJhbGciOiJkaXIifQ..0123456789abcdef.c2lnbmF0dXJl.dGFn", "***"),
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
        "the same_token of eyJhbGciOiJIUzI1NiJ9 and -eyJaaaaaaaa-eyJaaaaaaaa",
        "a glass-blower-of-great-renown-and-skill in Asia",
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
        OPENAI_KEY: 1,
    }
    assert redact(value) == {
        "headers": {"Authorization": "***", "Accept": "text/html"},
        "api_key": "***",
        "properties": {"password": {"type": "string"}},
        "items": ({"password": "***"}, "see ***", 5, None),
        "usage": {"total_tokens": 5, "token": "Hello"},
        "***": 1,
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


PARTS = (
    *("-eyJaaaaaaaa", "eyJ", ".aaaaaaaa", ".", "a", "aa_token", "-token", "x_secret", "password"),
    *("cookie", "authorization", "api_key", "bearer ", "basic ", "://", "a:", "@", " ", "\n"),
    *("\\", '"', "'", ": ", ",b", "=", "sk-", "dapi0", "glpat-", "xoxb-", "ya29."),
    *(
        "-----BEGIN ",
        "PRIVATE KEY-----",
        "-----END ",
        "-",
        "\\n",
        "AIza",
        "hooks.slack.com/services/",
    ),
)


def seconds(pattern: re.Pattern[str], text: str) -> float:
    started = time.thread_time()
    pattern.sub("", text)
    return time.thread_time() - started


@pytest.mark.parametrize(
    "pattern",
    [*(rule.pattern for rule in redaction._RULES), redaction._SECRET_NAME],
    ids=lambda pattern: pattern.pattern[:30],
)
def test_every_pattern_takes_linear_time(pattern: re.Pattern[str]) -> None:
    """Eight times the text takes about eight times as long, where the square were 64 times."""
    for first, second in itertools.product(PARTS, repeat=2):
        text = (first + second).lower() * (3_000 // len(first + second))
        if seconds(pattern, text) > 0.001:
            short = min(seconds(pattern, text) for _ in range(5))
            assert seconds(pattern, text * 8) < max(0.02, 24 * short), (first, second)


def test_a_long_text_takes_less_than_a_microsecond_a_character() -> None:
    for text in ("The quick brown password reset. ", "-eyJaaaaaaaa", "a_token b-secret cookie "):
        started = time.thread_time()
        redact(text * (1_000_000 // len(text)))
        assert time.thread_time() - started < 1


def test_a_letter_that_grows_in_lower_case_moves_nothing() -> None:
    assert redact(f"İİ {OPENAI_KEY} İ") == "İİ *** İ"


def test_a_deep_value_takes_linear_time() -> None:
    value: object = OPENAI_KEY
    for _ in range(400):
        value = [*range(1000), value]
    started = time.thread_time()
    redact(value)
    assert time.thread_time() - started < 2


SECRET_NAMES = (
    *("Authorization", "proxy-authorization", "Cookie", "set-cookie", "password", "passwd"),
    *("x-forwarded-access-token", "api_key", "x-api-key", "apikey", "OPENAI_API_KEY"),
    *("client_secret", "access_token", "refresh-token", "MY_TOKEN", "my_secret"),
    *("SecretAccessKey", "aws_secret_access_key", "sessionToken", "clientSecret", "db-secret"),
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
