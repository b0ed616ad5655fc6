"""The settings: what can be set, where it is read from, and what is said when it is wrong."""

import configparser
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError
from support.environment import PROJECT

from agent_kit.settings import (
    SECTIONS,
    SettingsError,
    Threshold,
    find_project_dir,
    get_settings,
    load_settings,
    settings_table,
)


def write(folder: Path, text: str) -> Path:
    (folder / "settings.ini").write_text(text, encoding="utf-8")
    return folder


def refused(folder: Path, text: str = "", **environ: str) -> str:
    """Return the message with which these settings are refused."""
    with pytest.raises(SettingsError) as caught:
        load_settings(write(folder, text), environ)
    return str(caught.value)


def test_defaults_need_no_file(tmp_path: Path) -> None:
    settings = load_settings(tmp_path, {})
    assert settings.agent.model == "offline"
    assert settings.server.host == "127.0.0.1"
    assert set(settings.origins.values()) == {"default"}


def test_each_layer_covers_the_one_before(tmp_path: Path) -> None:
    write(tmp_path, "[server]\nport = 9000\nworkers = 2\ntitle = Mine\n")
    environ = {"AGENT_KIT_SERVER_PORT": "9001", "AGENT_KIT_SERVER_WORKERS": "3"}
    settings = load_settings(tmp_path, environ, {"server.port": 9002})
    server, origins = settings.server, settings.origins
    assert (server.port, origins["server.port"]) == (9002, "argument")
    variable = "environment AGENT_KIT_SERVER_WORKERS"
    assert (server.workers, origins["server.workers"]) == (3, variable)
    assert (server.title, origins["server.title"]) == ("Mine", "settings.ini")
    assert origins["server.host"] == "default"


@pytest.mark.parametrize(
    ("variable", "value", "name"),
    [
        ("AGENT_KIT_MODEL", "openai:gpt-5.2", "agent.model"),
        ("OPENAI_BASE_URL", "http://localhost:1/v1", "agent.base_url"),
        ("MLFLOW_TRACKING_URI", "databricks", "mlflow.tracking_uri"),
        ("MLFLOW_REGISTRY_URI", "databricks-uc", "mlflow.registry_uri"),
        ("MLFLOW_EXPERIMENT_ID", "12", "mlflow.experiment_id"),
        ("AGENT_KIT_DEPLOY_APP_NAME", "my-app", "deploy.app_name"),
    ],
)
def test_variables_fill_settings(tmp_path: Path, variable: str, value: str, name: str) -> None:
    settings = load_settings(tmp_path, {variable: value})
    section, key = name.split(".")
    assert getattr(getattr(settings, section), key) == value
    assert settings.origins[name] == f"environment {variable}"


def test_a_setting_s_own_variable_wins_over_a_well_known_one(tmp_path: Path) -> None:
    environ = {"AGENT_KIT_MODEL": "openai:short", "AGENT_KIT_AGENT_MODEL": "openai:own"}
    assert load_settings(tmp_path, environ).agent.model == "openai:own"


def test_an_empty_variable_is_unset(tmp_path: Path) -> None:
    environ = {"AGENT_KIT_MODEL": "", "AGENT_KIT_AGENT_MODEL": "", "OPENAI_BASE_URL": ""}
    assert load_settings(tmp_path, environ).agent.model == "offline"


def test_databricks_apps_decides_on_address_and_port(tmp_path: Path) -> None:
    write(tmp_path, "[server]\nhost = 127.0.0.1\nport = 8000\n")
    environ = {"DATABRICKS_APP_NAME": "my-app", "DATABRICKS_APP_PORT": "8123"}
    settings = load_settings(tmp_path, environ)
    assert (settings.server.host, settings.server.port) == ("0.0.0.0", 8123)
    assert settings.server.on_disconnect == "continue"
    assert settings.origins["server.host"] == "environment DATABRICKS_APP_NAME"


def test_the_file_decides_what_databricks_apps_leaves_open(tmp_path: Path) -> None:
    write(tmp_path, "[server]\non_disconnect = cancel\n")
    settings = load_settings(tmp_path, {"DATABRICKS_APP_NAME": "my-app"})
    assert settings.server.on_disconnect == "cancel"


def test_lists_and_thresholds(tmp_path: Path) -> None:
    write(
        tmp_path,
        "[server]\nexample_prompts =\n    Hello, you\n    And: bye?\nallowed_hosts = a.example, b\n"
        "[evaluate]\nthresholds =\n    correctness >= 0.9\n    seconds<2.5\n",
    )
    settings = load_settings(tmp_path, {})
    assert settings.server.example_prompts == ("Hello, you", "And: bye?")
    assert settings.server.allowed_hosts == ("a.example", "b")
    assert [str(bound) for bound in settings.evaluate.thresholds] == [
        "correctness >= 0.9",
        "seconds < 2.5",
    ]


def test_an_empty_value_unsets_and_empties(tmp_path: Path) -> None:
    write(tmp_path, "[server]\nexample_prompts =\nweb_dir =\n[agent]\nbase_url =\n")
    settings = load_settings(tmp_path, {})
    assert settings.server.example_prompts == ()
    assert settings.server.web_dir is None
    assert settings.agent.base_url is None


def test_a_percent_sign_and_a_colon_are_ordinary(tmp_path: Path) -> None:
    write(tmp_path, "[agent]\nmodel = openai:gpt:5%\ninstructions = Be 100% sure: # always\n")
    agent = load_settings(tmp_path, {}).agent
    assert agent.model == "openai:gpt:5%"
    assert agent.instructions == "Be 100% sure: # always"


def test_paths_start_from_the_project(tmp_path: Path) -> None:
    write(
        tmp_path,
        "[server]\nweb_dir = page\n[store]\nurl = sqlite:///store.db\n"
        "[evaluate]\ndataset = /elsewhere/cases.jsonl\n",
    )
    settings = load_settings(tmp_path, {})
    assert settings.server.web_dir == tmp_path / "page"
    assert settings.store.url == f"sqlite:///{tmp_path}/store.db"
    assert settings.mlflow.tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert settings.mlflow.spool_dir == tmp_path / ".agent_kit" / "spool"
    assert settings.evaluate.dataset == Path("/elsewhere/cases.jsonl")


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite:////abs/x.db"])
def test_databases_without_a_relative_file_are_unchanged(tmp_path: Path, url: str) -> None:
    assert load_settings(tmp_path, {"AGENT_KIT_STORE_URL": url}).store.url == url


def test_the_project_is_found_from_below(tmp_path: Path) -> None:
    below = tmp_path / "nbs" / "tutorials"
    below.mkdir(parents=True)
    assert find_project_dir(below) == below
    (tmp_path / "pyproject.toml").touch()
    assert find_project_dir(below) == tmp_path
    write(tmp_path / "nbs", "")
    assert find_project_dir(below) == tmp_path / "nbs"


def test_get_settings_reads_once_and_from_below(tmp_path: Path) -> None:
    """A user's own project, with the kit installed: a notebook in nbs/ sees the project's file."""
    (tmp_path / "nbs").mkdir()
    write(tmp_path, "[server]\napp = my_project.agent:app\n")
    script = (
        "from agent_kit.settings import get_settings\n"
        "settings = get_settings()\n"
        "assert settings is get_settings()\n"
        "print(settings.server.app, settings.project_dir)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path / "nbs",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["my_project.agent:app", str(tmp_path)]


# What is wrong is refused, and the message says where and what is allowed.


def test_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    message = refused(tmp_path, "[agent]\nmodle = offline\n")
    assert f"{tmp_path / 'settings.ini'}: [agent] modle is not a setting" in message
    assert "did you mean model?" in message


def test_a_key_of_another_section_is_shown_its_place(tmp_path: Path) -> None:
    assert "did you mean [agent] model?" in refused(tmp_path, "[server]\nmodel = offline\n")


def test_a_key_without_resemblance_gets_the_list(tmp_path: Path) -> None:
    assert "known keys: url, days" in refused(tmp_path, "[store]\nzzz = 1\n")


@pytest.mark.parametrize(
    ("section", "hint"), [("serve", "did you mean [server]?"), ("zzz", "known: agent, server")]
)
def test_an_unknown_section(tmp_path: Path, section: str, hint: str) -> None:
    message = refused(tmp_path, f"[{section}]\nport = 1\n")
    assert f"[{section}] is not a section" in message
    assert hint in message


def test_a_configuration_of_old_nbdev(tmp_path: Path) -> None:
    message = refused(tmp_path, "[DEFAULT]\nlib_name = mine\nversion = 0.1\n")
    assert "[tool.nbdev] in pyproject.toml" in message


@pytest.mark.parametrize(
    "line",
    [
        "api_key = hunter22",
        "databricks_token = hunter22",
        "client_secret = hunter22",
        "password = hunter22",
        "base_url = http://me:hunter22@host/v1",
        "instructions = use sk-proj-hunter22hunter22hunter22",
    ],
)
def test_secrets_in_the_file_are_refused_unseen(tmp_path: Path, line: str) -> None:
    message = refused(tmp_path, f"[agent]\n{line}\n")
    assert "secrets come from the environment" in message
    assert "hunter22" not in message


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    message = refused(tmp_path, "[agent]\nmodle = x\n[server]\nprot = 1\n[nonsense]\n")
    assert len(message.splitlines()) == 3


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("agent.model", "gpt-5", "openai:<name>"),
        ("agent.model", "openai:", "openai:<name>"),
        ("agent.max_turns", "0", "greater than or equal to 1"),
        ("agent.timeout_seconds", "soon", "a valid number"),
        ("server.app", "my_project", "module:variable"),
        ("server.port", "eight", "a valid integer"),
        ("server.port", "70000", "less than or equal to 65535"),
        ("server.on_disconnect", "stop", "'cancel' or 'continue'"),
        ("mlflow.tracing", "perhaps", "a valid boolean"),
        ("mlflow.trace_content", "some", "'full', 'redacted' or 'off'"),
        ("mlflow.model_name", "my_agent", "catalog.schema.model"),
        ("evaluate.thresholds", "correctness = 0.9", "correctness >= 0.9"),
        ("evaluate.thresholds", "correctness >= .", "a valid number"),
        ("evaluate.thresholds", "correctness/lowest >= 1", "low, high, errors, change, pass_at_"),
        ("deploy.app_name", "My_App", "lower-case letters"),
        ("deploy.workspace_path", "apps/mine", "start with /Workspace/"),
    ],
)
def test_wrong_values_name_place_value_and_what_is_allowed(
    tmp_path: Path, name: str, value: str, allowed: str
) -> None:
    section, key = name.split(".")
    message = refused(tmp_path, f"[{section}]\n{key} = {value}\n")
    assert f"settings.ini: [{section}] {key} = {value!r}: should " in message
    assert allowed in message

    variable = f"AGENT_KIT_{section}_{key}".upper()
    message = refused(tmp_path, **{variable: value})
    assert f"{variable} ([{section}] {key}) = {value!r}: should " in message


def test_wrong_overrides(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"argument server\.port = 'x': should be"):
        load_settings(tmp_path, {}, {"server.port": "x"})
    with pytest.raises(SettingsError, match="argument port is not a setting"):
        load_settings(tmp_path, {}, {"port": 1})


def test_unknown_variables_are_refused(tmp_path: Path) -> None:
    message = refused(tmp_path, AGENT_KIT_MODLE="offline")
    assert "AGENT_KIT_MODLE is not a setting; did you mean AGENT_KIT_MODEL?" in message


def test_reserved_variables_are_not_settings(tmp_path: Path) -> None:
    assert load_settings(tmp_path, {"AGENT_KIT_DEBUG": "1", "AGENT_KIT_REQUIRE_ALL": "1"})


@pytest.mark.parametrize(
    "text",
    ["port = 1\n", "[server]\nport = 1\nport = 2\n", "[server]\nport\n", "[agent]\n[agent]\n"],
)
def test_a_file_that_cannot_be_parsed_is_named(tmp_path: Path, text: str) -> None:
    message = refused(tmp_path, text)
    assert message.startswith(f"{tmp_path / 'settings.ini'}: ")
    assert "\n" not in message


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "settings.ini").write_bytes(b"[server]\ntitle = \xff\xfe\n")
    with pytest.raises(SettingsError, match="not UTF-8 text"):
        load_settings(tmp_path, {})


# The object


def test_settings_are_frozen(tmp_path: Path) -> None:
    settings = load_settings(tmp_path, {})
    with pytest.raises(ValidationError, match="frozen"):
        settings.server.port = 1
    with pytest.raises(ValidationError, match="frozen"):
        settings.agent = settings.agent


def test_a_store_that_is_no_database_is_refused_without_its_password(tmp_path: Path) -> None:
    message = refused(tmp_path, AGENT_KIT_STORE_URL="mysql://kit:hunter22@db.example/kit")
    assert "postgresql://host/database" in message
    assert "hunter22" not in message


def test_a_password_from_the_environment_is_never_shown(tmp_path: Path) -> None:
    url = "postgresql://kit:hunter22@db.example/kit"
    settings = load_settings(tmp_path, {"AGENT_KIT_STORE_URL": url})
    assert settings.store.url == url
    for text in (repr(settings), settings_table(settings), settings._repr_markdown_()):
        assert "hunter22" not in text
    assert "postgresql://kit:***@db.example/kit" in settings_table(settings)


def test_the_table_shows_every_value_and_its_origin(tmp_path: Path) -> None:
    settings = load_settings(tmp_path, {"AGENT_KIT_MODEL": "openai:gpt-5.2"})
    table = settings_table(settings)
    assert str(tmp_path) in table.splitlines()[0]
    row = next(line for line in table.splitlines() if line.startswith("agent.model "))
    assert row.split() == ["agent.model", "openai:gpt-5.2", "environment", "AGENT_KIT_MODEL"]
    keys = sum(len(section.model_fields) for section in SECTIONS.values())
    assert len(table.splitlines()) == keys + 2
    assert settings._repr_markdown_().count("\n") == keys + 1


def test_a_cell_of_the_markdown_table_cannot_break_it(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, "[server]\ntitle = a | b\n"), {})
    row = next(line for line in settings._repr_markdown_().splitlines() if "server.title" in line)
    assert r"a \| b" in row


def test_thresholds_compare() -> None:
    for comparison, low, equal, high in [
        (">=", False, True, True),
        (">", False, False, True),
        ("<=", True, True, False),
        ("<", True, False, False),
    ]:
        bound = Threshold.model_validate({"metric": "m", "comparison": comparison, "value": 1})
        assert [bound.holds(value) for value in (0.5, 1.0, 1.5)] == [low, equal, high]
        assert not bound.holds(float("nan"))


# The settings.ini that is shipped


def test_the_shipped_file_sets_no_more_than_extras_scorers_and_gate(tmp_path: Path) -> None:
    plain = load_settings(tmp_path, {})
    shipped = load_settings(
        write(tmp_path, (PROJECT / "settings.ini").read_text(encoding="utf-8")), {}
    )
    for section in SECTIONS:
        if section not in ("deploy", "evaluate"):
            assert getattr(shipped, section) == getattr(plain, section)
    assert shipped.deploy.extras == ("databricks",)
    gate = shipped.evaluate.thresholds
    assert [str(threshold) for threshold in gate] == ["correctness >= 0.9"]
    assert shipped.evaluate.scorers == "agent_kit.agent.evaluation:scorers"
    without = shipped.evaluate.model_copy(update={"thresholds": (), "scorers": None})
    assert without == plain.evaluate


def test_the_shipped_file_mentions_every_key() -> None:
    text = (PROJECT / "settings.ini").read_text(encoding="utf-8")
    uncommented = "\n".join(
        line.removeprefix("# ") if " = " in line or line.endswith(" =") else line
        for line in text.splitlines()
    )
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.read_string(uncommented)
    for section, model in SECTIONS.items():
        assert set(parser[section]) >= set(model.model_fields), section


def test_get_settings_can_be_read_again() -> None:
    first = get_settings()
    get_settings.cache_clear()
    assert get_settings() is not first
