"""A simulated Databricks workspace on a port of this machine.

It implements as much of the REST API as the kit uses, as Databricks documents it: users
by token, the app identity by OAuth, workspace files, experiments, apps and their deployments, and
a deployed app that sends a personal access token to a login page. Unlike a mock it is reached by
the real `databricks-sdk` over HTTP.
"""

import json
import os
import re
import threading
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from agent_kit.sandbox import run_python

MAX_FILE_BYTES = 10 * 1024 * 1024
ADA_TOKEN = "dapi" + "a" * 32
BOB_TOKEN = "dapi" + "b" * 32
ADA_OAUTH_TOKEN = "oauth-of-ada"
CLIENT_ID, CLIENT_SECRET = "app-client-id", "app-client-secret"
APP_USER = "app-service-principal"


def remove_credentials(monkeypatch: pytest.MonkeyPatch, profiles: Path) -> None:
    """Remove all credentials but those in the file `profiles`, which need not exist."""
    for name in [each for each in os.environ if each.startswith("DATABRICKS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DATABRICKS_CONFIG_FILE", str(profiles))


class Refusal(Exception):
    """An error of the API: an HTTP status and a Databricks error code."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass
class Call:
    """A request: its method, path, query, fields and user."""

    method: str
    path: str
    query: dict[str, str]
    body: dict[str, Any]
    user: str | None = None


@dataclass
class Workspace:
    """The state of the workspace, which tests read and prepare."""

    url: str = ""
    users: dict[str, str] = field(
        default_factory=lambda: {
            ADA_TOKEN: "ada@example.com",
            BOB_TOKEN: "bob@example.com",
            ADA_OAUTH_TOKEN: "ada@example.com",
        }
    )
    calls: list[Call] = field(default_factory=list)
    folders: set[str] = field(default_factory=lambda: {"/", "/Workspace"})
    files: dict[str, bytes] = field(default_factory=dict)
    notebooks: dict[str, bytes] = field(default_factory=dict)
    experiments: dict[str, dict[str, str]] = field(default_factory=dict)
    apps: dict[str, dict[str, Any]] = field(default_factory=dict)
    deployments: list[dict[str, Any]] = field(default_factory=list)
    deployment_failure: str | None = None
    refused_uploads: set[str] = field(default_factory=set)
    oauth_tokens_made: int = 0
    statements: dict[str, dict[str, Any]] = field(default_factory=dict)
    statement_error: str | None = None  # the message of every statement
    submission: "Refusal | ConnectionError | None" = None  # raised once it is received
    submitting: threading.Event = field(default_factory=threading.Event)
    accept: threading.Event = field(default_factory=threading.Event)
    polls_to_wait: int = 0
    poll: "Refusal | None" = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    model_refusal: "Refusal | None" = None

    def called(self, method: str, path: str) -> list[Call]:
        """Return the calls of `method` on paths that match the regular expression `path`."""
        return [
            call for call in self.calls if call.method == method and re.fullmatch(path, call.path)
        ]


_Answer = dict[str, Any]
_Endpoint = Callable[..., _Answer]
_routes: list[tuple[str, re.Pattern[str], _Endpoint]] = []


def route(method: str, path: str) -> Callable[[_Endpoint], _Endpoint]:
    """Serve requests whose path matches; its groups become further arguments."""

    def register(endpoint: _Endpoint) -> _Endpoint:
        _routes.append((method, re.compile(path), endpoint))
        return endpoint

    return register


# Authentication


@route("GET", "/.well-known/databricks-config")
def well_known(workspace: Workspace, call: Call) -> _Answer:
    return {"oidc_endpoint": f"{workspace.url}/oidc", "workspace_id": "12345"}


@route("GET", "/oidc/.well-known/oauth-authorization-server")
def oauth_server(workspace: Workspace, call: Call) -> _Answer:
    oidc = f"{workspace.url}/oidc/v1"
    return {"authorization_endpoint": f"{oidc}/authorize", "token_endpoint": f"{oidc}/token"}


@route("POST", "/oidc/v1/token")
def oauth_token(workspace: Workspace, call: Call) -> _Answer:
    """Return a token that the SDK has to refresh at the next use."""
    if call.user != CLIENT_ID:
        raise Refusal(401, "invalid_client", "unknown client")
    workspace.oauth_tokens_made += 1
    token = f"oauth-of-app-{workspace.oauth_tokens_made}"
    workspace.users[token] = APP_USER
    return {"access_token": token, "token_type": "Bearer", "expires_in": 1}


@route("GET", "/api/2.0/preview/scim/v2/Me")
def me(workspace: Workspace, call: Call) -> _Answer:
    return {"id": f"id-of-{call.user}", "userName": call.user}


# Serving endpoints


@route("POST", "/serving-endpoints/chat/completions")
def chat_completions(workspace: Workspace, call: Call) -> _Answer:
    """Answer as a model that does not stream, and that names the user."""
    if workspace.model_refusal:
        raise workspace.model_refusal
    message = {"role": "assistant", "content": f"Hello, {call.user}."}
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}


# Files


def _check_parent(workspace: Workspace, path: str) -> None:
    parent = path.rpartition("/")[0] or "/"
    if parent not in workspace.folders:
        message = f"The parent folder ({parent}) does not exist."
        raise Refusal(404, "RESOURCE_DOES_NOT_EXIST", message)


@route("POST", "/api/2.0/workspace/mkdirs")
def mkdirs(workspace: Workspace, call: Call) -> _Answer:
    path = call.body["path"]
    while path not in workspace.folders:
        workspace.folders.add(path)
        path = path.rpartition("/")[0] or "/"
    return {}


def _is_notebook(path: str, content: bytes) -> bool:
    return path.endswith(".ipynb") or content.startswith(b"# Databricks notebook source")


@route("POST", "/api/2.0/workspace/import")
def import_file(workspace: Workspace, call: Call) -> _Answer:
    """Store a file; every format but RAW turns notebooks into notebooks without an extension."""
    path, content = call.body["path"], call.body["content"]
    _check_parent(workspace, path)
    if path in workspace.refused_uploads:
        raise Refusal(403, "PERMISSION_DENIED", f"{call.user} may not write {path}")
    if len(content) > MAX_FILE_BYTES:
        raise Refusal(400, "MAX_NOTEBOOK_SIZE_EXCEEDED", f"{path} is larger than 10 MB")
    exists = path in workspace.files or path in workspace.notebooks
    if exists and call.body.get("overwrite") != "true":
        raise Refusal(400, "RESOURCE_ALREADY_EXISTS", f"{path} already exists")
    if call.body.get("format") != "RAW" and _is_notebook(path, content):
        workspace.notebooks[path.rpartition(".")[0]] = content
    else:
        workspace.files[path] = content
    return {}


@route("POST", "/api/2.0/workspace/delete")
def delete_file(workspace: Workspace, call: Call) -> _Answer:
    if workspace.files.pop(call.body["path"], None) is None:
        raise Refusal(404, "RESOURCE_DOES_NOT_EXIST", "no such file")
    return {}


@route("GET", "/api/2.0/workspace/export")
def export_file(workspace: Workspace, call: Call) -> _Answer:
    path = call.query["path"]
    if path not in workspace.files:
        raise Refusal(404, "RESOURCE_DOES_NOT_EXIST", f"Path ({path}) doesn't exist.")
    return {"raw": workspace.files[path]}


# Experiments


@route("GET", "/api/2.0/mlflow/experiments/get-by-name")
def experiment_by_name(workspace: Workspace, call: Call) -> _Answer:
    for experiment in workspace.experiments.values():
        if experiment["name"] == call.query["experiment_name"]:
            return {"experiment": experiment}
    raise Refusal(404, "RESOURCE_DOES_NOT_EXIST", "no such experiment")


@route("POST", "/api/2.0/mlflow/experiments/create")
def create_experiment(workspace: Workspace, call: Call) -> _Answer:
    experiment_id = str(1000 + len(workspace.experiments))
    workspace.experiments[experiment_id] = {
        "experiment_id": experiment_id,
        "name": call.body["name"],
        "lifecycle_stage": "active",
    }
    return {"experiment_id": experiment_id}


# Apps


def _app(workspace: Workspace, name: str) -> dict[str, Any]:
    if name not in workspace.apps:
        raise Refusal(404, "NOT_FOUND", f"App with name {name} does not exist or is deleted.")
    return workspace.apps[name]


@route("POST", "/api/2.0/apps")
def create_app(workspace: Workspace, call: Call) -> _Answer:
    name = call.body["name"]
    if name in workspace.apps:
        raise Refusal(409, "ALREADY_EXISTS", f"An app with the same name {name} already exists")
    workspace.apps[name] = call.body | {
        "url": f"{workspace.url}/deployed/{name}",
        "compute_status": {"state": "ACTIVE", "message": "App compute is running."},
        "service_principal_client_id": CLIENT_ID,
    }
    return workspace.apps[name]


@route("GET", r"/api/2.0/apps/([^/]+)")
def get_app(workspace: Workspace, call: Call, name: str) -> _Answer:
    return _app(workspace, name)


@route("POST", r"/api/2.0/apps/([^/]+)/update")
def update_app(workspace: Workspace, call: Call, name: str) -> _Answer:
    """Replace each field of the mask as a whole."""
    app = _app(workspace, name)
    for key in call.body["update_mask"].split(","):
        app[key] = call.body["app"].get(key)
    return {"status": {"state": "SUCCEEDED"}}


@route("GET", r"/api/2.0/apps/([^/]+)/update")
def get_app_update(workspace: Workspace, call: Call, name: str) -> _Answer:
    return {"status": {"state": "SUCCEEDED"}}


@route("POST", r"/api/2.0/apps/([^/]+)/start")
def start_app(workspace: Workspace, call: Call, name: str) -> _Answer:
    _app(workspace, name)["compute_status"] = {"state": "ACTIVE", "message": "running"}
    return _app(workspace, name)


@route("POST", r"/api/2.0/apps/([^/]+)/deployments")
def deploy_app(workspace: Workspace, call: Call, name: str) -> _Answer:
    if _app(workspace, name)["compute_status"]["state"] != "ACTIVE":
        raise Refusal(400, "BAD_REQUEST", f"The compute of app {name} is not running.")
    state = "FAILED" if workspace.deployment_failure else "SUCCEEDED"
    status = {"state": state, "message": workspace.deployment_failure or "App started"}
    number = f"deployment-{len(workspace.deployments) + 1}"
    deployment = call.body | {"deployment_id": number, "status": status}
    workspace.deployments.append(deployment)
    return deployment


@route("GET", r"/api/2.0/apps/([^/]+)/deployments/([^/]+)")
def get_deployment(workspace: Workspace, call: Call, name: str, number: str) -> _Answer:
    return next(each for each in workspace.deployments if each["deployment_id"] == number)


@route("GET", r"/deployed/([^/]+)/api/agent/info")
def deployed_info(workspace: Workspace, call: Call, name: str) -> _Answer:
    return {"name": name, "asked_by": call.user}


@route("POST", r"/deployed/([^/]+)/api/invocations")
def deployed_answer(workspace: Workspace, call: Call, name: str) -> _Answer:
    return {"output": [], "asked": call.body, "asked_by": call.user}


# SQL statements


@route("POST", "/api/2.0/sql/statements")
def execute_statement(workspace: Workspace, call: Call) -> _Answer:
    """Run the only supported statement: the function system.ai.python_exec."""
    if call.body["statement"] != "SELECT system.ai.python_exec(:code)":
        raise Refusal(400, "BAD_REQUEST", f"no such statement: {call.body['statement']}")
    if call.body["warehouse_id"] != "warehouse-1":
        raise Refusal(404, "NOT_FOUND", f"{call.body['warehouse_id']} is not a warehouse.")
    number = f"statement-{len(workspace.statements) + 1}"
    (code,) = [each["value"] for each in call.body["parameters"] if each["name"] == "code"]
    workspace.statements[number] = {"code": code, "waits": workspace.polls_to_wait}
    workspace.submitting.set()
    assert workspace.accept.wait(60)
    if workspace.submission:
        raise workspace.submission
    return _statement(workspace, number)


@route("GET", r"/api/2.0/sql/statements/([^/]+)")
def get_statement(workspace: Workspace, call: Call, number: str) -> _Answer:
    if workspace.poll:
        raise workspace.poll
    return _statement(workspace, number)


def _failed(head: dict[str, Any], message: str) -> _Answer:
    error = {"error_code": "BAD_REQUEST", "message": message}
    return head | {"status": {"state": "FAILED", "error": error}}


def _statement(workspace: Workspace, number: str) -> _Answer:
    statement = workspace.statements[number]
    head = {"statement_id": number}
    if statement["waits"] > 0:
        statement["waits"] -= 1
        return head | {"status": {"state": "PENDING"}}
    if workspace.statement_error:
        return _failed(head, workspace.statement_error)
    done = run_python(statement["code"])
    if done.exit_code:
        return _failed(head, f"[UDF_USER_CODE_ERROR.GENERIC] failed.\n{done.stderr}")
    result = {"row_count": 1, "data_array": [[done.stdout]]}
    return head | {"status": {"state": "SUCCEEDED"}, "result": result}


@route("POST", r"/api/2.0/sql/statements/([^/]+)/cancel")
def cancel_statement(workspace: Workspace, call: Call, number: str) -> _Answer:
    workspace.statements[number]["cancelled"] = True
    return {}


# HTTP


def _parse_body(content_type: str, content: bytes) -> dict[str, Any]:
    if content_type.startswith("application/json"):
        return json.loads(content or b"{}")
    if content_type.startswith("multipart/form-data"):
        head = f"Content-Type: {content_type}\r\n\r\n".encode()
        parts = BytesParser(policy=HTTP).parsebytes(head + content).iter_parts()
        fields: dict[str, Any] = {}
        for part in parts:
            payload = part.get_payload(decode=True)
            assert isinstance(payload, bytes)
            name = part.get_param("name", header="content-disposition")
            fields[str(name)] = payload if part.get_filename() else payload.decode()
        return fields
    return {name: values[0] for name, values in parse_qs(content.decode()).items()}


class _Handler(BaseHTTPRequestHandler):
    """One request a connection (HTTP/1.0), so that closing the server does not wait."""

    workspace: Workspace

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""

    def _serve(self) -> None:
        url = urlsplit(self.path)
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        call = Call(
            self.command,
            url.path,
            {name: values[0] for name, values in parse_qs(url.query).items()},
            _parse_body(self.headers.get("Content-Type") or "", content),
        )
        with self.workspace.lock:
            try:
                self._answer(200, self._dispatch(call))
            except ConnectionError:
                self.close_connection = True  # the answer is lost
            except Refusal as refusal:
                body = {"error_code": refusal.code, "message": refusal.message}
                self._answer(refusal.status, body)

    do_GET = do_POST = _serve

    def _dispatch(self, call: Call) -> _Answer:
        call.user = self._user(call.body)
        self.workspace.calls.append(call)
        public = "/.well-known/" in call.path or call.path.startswith("/oidc/")
        if call.path.startswith("/deployed/") and not self._has_oauth_token():
            return {"location": f"{self.workspace.url}/oidc/oauth2/v2.0/authorize?client_id=x"}
        if call.user is None and not public:
            raise Refusal(401, "UNAUTHENTICATED", "The credential is missing or of no known user")
        for method, pattern, endpoint in _routes:
            if method == call.method and (match := pattern.fullmatch(call.path)):
                return endpoint(self.workspace, call, *match.groups())
        raise Refusal(404, "ENDPOINT_NOT_FOUND", f"No API found for {call.method} {call.path}")

    def _user(self, body: dict[str, Any]) -> str | None:
        scheme, _, value = (self.headers.get("Authorization") or "").partition(" ")
        if scheme == "Basic":
            name, _, secret = b64decode(value).decode().partition(":")
            return name if secret == CLIENT_SECRET else None
        return self.workspace.users.get(value)

    def _has_oauth_token(self) -> bool:
        return (self.headers.get("Authorization") or "").startswith("Bearer oauth-")

    def _answer(self, status: int, answer: _Answer) -> None:
        if location := answer.get("location"):
            self.send_response(302)
            self.send_header("Location", location)
            content = b""
        else:
            self.send_response(status)
            content = answer["raw"] if "raw" in answer else json.dumps(answer).encode()
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # closing waits for the last answer, so that no thread is left


@contextmanager
def serve_workspace() -> Iterator[Workspace]:
    """Serve an empty workspace on a free port inside the `with` block."""
    workspace = Workspace()
    workspace.accept.set()
    handler = type("Handler", (_Handler,), {"workspace": workspace})
    with _Server(("127.0.0.1", 0), handler) as server:
        workspace.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield workspace
        finally:
            server.shutdown()
            thread.join()
