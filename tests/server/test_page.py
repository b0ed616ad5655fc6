"""The files of the page over HTTP: whole, small, safe, and replaceable."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from support.environment import PROJECT

from agent_kit.server import AgentServer, create_server
from agent_kit.settings import SettingsError, load_settings

WEB = PROJECT / "agent_kit" / "server" / "web"


def serve(folder: Path | None = None, **environ: str) -> AgentServer:
    environ = {f"AGENT_KIT_{name}": value for name, value in environ.items()}
    environ["AGENT_KIT_MLFLOW_TRACING"] = "false"
    server = create_server(settings=load_settings(folder, environ=environ))
    server.invoke()(lambda request: "answer")
    return server


@pytest.fixture(scope="module")
def plain() -> Iterator[str]:
    with serve(SERVER_TITLE="Sales <helper>", SERVER_ICON="🧮").serve() as url:
        yield url


def test_vendored_files_are_what_they_claim_to_be() -> None:
    manifest = json.loads((WEB / "vendor/manifest.json").read_text())
    for entry in manifest:
        content = (WEB / "vendor" / entry["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
        assert entry["version"]
        assert (WEB / "vendor" / entry["licence_file"]).read_text()
    known = {entry[key] for entry in manifest for key in ("file", "licence_file")}
    assert {path.name for path in (WEB / "vendor").iterdir()} == known | {"manifest.json"}


def test_the_page_is_small() -> None:
    assert sum(path.stat().st_size for path in WEB.rglob("*") if path.is_file()) < 250_000


def test_the_page_loads_nothing_from_elsewhere() -> None:
    for path in (*WEB.glob("*.html"), *WEB.glob("*.css"), *WEB.glob("*.js")):
        text = path.read_text()
        assert 'src="/' not in text, path
        assert 'href="/' not in text, path
        assert "url(" not in text, path


def test_files_with_a_dot_are_not_served(tmp_path: Path) -> None:
    (tmp_path / "page" / ".git").mkdir(parents=True)
    for name in ("index.html", ".env", ".git/config", "a.txt"):
        (tmp_path / "page" / name).write_text("content")
    with serve(tmp_path, SERVER_WEB_DIR="page").serve() as url:
        for path in ("/.env", "/.git/config", "/%2eenv", "/.git", "//.env", "/x/../.env"):
            assert httpx2.get(url + path).status_code == 404, path
        for path in ("/", "/index.html", "/a.txt"):
            assert httpx2.get(url + path).status_code == 200, path


def test_name_and_icon_come_from_the_settings(plain):
    manifest = httpx2.get(f"{plain}/manifest.webmanifest")
    assert manifest.headers["content-type"].startswith("application/manifest+json")
    assert manifest.json()["name"] == "Sales <helper>"
    assert manifest.json()["icons"][0]["src"] == "./agent/icon.svg"
    icon = httpx2.get(f"{plain}/agent/icon.svg")
    assert icon.headers["content-type"].startswith("image/svg+xml")
    assert "🧮" in icon.text


def test_a_picture_can_be_the_icon():
    with serve(SERVER_ICON="logo.png").serve() as url:
        manifest = httpx2.get(f"{url}/manifest.webmanifest").json()
        assert manifest["icons"][0]["src"] == "logo.png"


@pytest.mark.parametrize(
    "path", ["/../settings.py", "/%2e%2e/settings.py", "/%00", "/" + "x" * 999]
)
def test_no_other_file_is_served(plain, path):
    answer = httpx2.get(plain + path)
    assert answer.status_code == 404
    assert "error" in answer.json()


def test_the_page_accepts_no_post(plain):
    assert httpx2.post(plain + "/chat.css", json={}).status_code == 404


# A custom page --------------------------------------------------------------------------------


def test_a_custom_page_overrides_the_bundled_one(tmp_path):
    custom = tmp_path / "custom"
    custom.mkdir()
    (custom / "index.html").write_text("<html><head></head><body>Mine</body></html>")
    with serve(tmp_path, SERVER_WEB_DIR="custom").serve() as url:
        page = httpx2.get(f"{url}/")
        assert "Mine" in page.text
        assert "script-src 'self'" in page.headers["content-security-policy"]
        assert 'src="agent/live-reload.js"' in page.text
        assert "location.reload" in httpx2.get(f"{url}/agent/live-reload.js").text
        assert httpx2.get(f"{url}/chat.css").text == (WEB / "chat.css").read_text()

        before = httpx2.get(f"{url}/agent/page-version").text
        assert httpx2.get(f"{url}/agent/page-version").text == before
        (custom / "pictures").mkdir()
        (custom / "pictures" / "logo.svg").write_text("<svg/>")
        assert httpx2.get(f"{url}/agent/page-version").text != before


def test_a_page_that_is_deployed_does_not_reload(tmp_path):
    (tmp_path / "chat.css").write_text("body { color: teal }")
    settings = {"SERVER_WEB_DIR": str(tmp_path), "SERVER_HOST": "0.0.0.0"}
    with serve(tmp_path, **settings).serve() as url:
        assert "live-reload" not in httpx2.get(f"{url}/").text
        assert httpx2.get(f"{url}/chat.css").text == "body { color: teal }"
        assert httpx2.get(f"{url}/agent/page-version").status_code == 404


def test_the_bundled_page_does_not_reload(plain):
    assert "live-reload" not in httpx2.get(f"{plain}/").text
    assert httpx2.get(f"{plain}/agent/page-version").status_code == 404


def test_a_folder_without_files_is_a_clear_error(tmp_path):
    with pytest.raises(SettingsError, match="web_dir"):
        serve(tmp_path, SERVER_WEB_DIR="missing")


# Allowed host names ---------------------------------------------------------------------------


def status(url: str, host: str) -> int:
    return httpx2.get(f"{url}/agent/info", headers={"host": host}).status_code


def test_a_local_server_answers_to_local_names_and_those_allowed():
    with serve(SERVER_ALLOWED_HOSTS="Agents.Example").serve() as url:
        assert status(url, "agents.example:8000") == 200
        assert status(url, "localhost") == 200
        assert status(url, "evil.example") == 421


def test_a_public_server_answers_to_its_configured_names():
    with serve(SERVER_HOST="0.0.0.0").serve() as url:
        assert status(url, "anything.example") == 200
    with serve(SERVER_HOST="0.0.0.0", SERVER_ALLOWED_HOSTS="agents.example").serve() as url:
        assert status(url, "agents.example") == 200
        assert status(url, "evil.example") == 421


def test_the_address_of_the_command_line_counts():
    server = serve()
    server.service.bind("0.0.0.0", 0)
    with server.serve() as url:
        assert status(url, "my-laptop.local") == 200
