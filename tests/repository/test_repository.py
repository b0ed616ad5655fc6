"""The repository's own rules, so that one command checks them all."""

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from configparser import ConfigParser
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from support.environment import PROJECT, unmeasured

import agent_kit

PACKAGE = PROJECT / "agent_kit"
NBS = PROJECT / "nbs"
# A room imports only what stands before it.
RANK = (
    *("protocol", "redaction", "settings", "databricks", "context", "tracing"),
    *(
        "models",
        "sandbox",
        "tools",
        "loop",
        "frameworks",
        "store",
        "runs",
        "server",
        "evaluate",
        "chat",
    ),
    *("agent", "deploy", "cli", "__init__"),
)
USERS_ROOM = "agent"


def room_of(path: Path, top: Path) -> str:
    """The room of a module or notebook: its folder, or itself where it stands at the top."""
    return path.relative_to(top).parts[0].removesuffix(".py")


# The agent's room is the user's: what is asked of the kit's code is not asked of it.
MODULES = {
    ".".join(("agent_kit", *path.relative_to(PACKAGE).with_suffix("").parts)): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if "File to edit:" in path.read_text() and room_of(path, PACKAGE) != USERS_ROOM
}
NOTEBOOKS = [
    path
    for path in sorted(NBS.rglob("*.ipynb"))
    if room_of(path, NBS) not in (USERS_ROOM, "tutorials", "index.ipynb", "architecture.ipynb")
]
each_module = pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
each_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def run(*command: str | Path, cwd: Path = PROJECT) -> str:
    """Run a command that has to succeed; return what it printed."""
    environ = {name: value for name, value in unmeasured().items() if name != "IN_TEST"}
    done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def script(name: str) -> Path:
    """The path of a console script of this environment."""
    return Path(sys.executable).with_name(name)


@cache
def pyproject() -> dict:
    return tomllib.loads((PROJECT / "pyproject.toml").read_text())


def texts(folder: Path, pattern: str) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob(pattern)}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The notebooks and the package in another folder, to be changed at will."""
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    for folder in ("nbs", "agent_kit"):
        ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        shutil.copytree(PROJECT / folder, tmp_path / folder, ignore=ignore)
    return tmp_path


# --- notebooks and what is made from them


def test_the_package_is_what_the_notebooks_export(copy: Path) -> None:
    run(script("nbdev-export"), cwd=copy)
    assert texts(copy / "agent_kit", "*.py") == texts(PACKAGE, "*.py"), "run nbdev-export"


def test_every_module_comes_from_a_notebook() -> None:
    by_hand = {"__init__.py", "_modidx.py", "migrations"}
    stale = [
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if not by_hand.intersection(path.parts) and not notebook_of(path).exists()
    ]
    assert not stale, f"no notebook exports {stale}: delete them"


def test_notebooks_are_clean(copy: Path) -> None:
    run(script("nbdev-clean"), cwd=copy)
    for notebook in NOTEBOOKS:
        clean = (copy / "nbs" / notebook.relative_to(NBS)).read_text()
        assert notebook.read_text() == clean, "run nbdev-clean"


def test_the_readme_is_the_index_notebook() -> None:
    command = "import sys; sys.path.insert(0, 'docs'); import notebooks; print(notebooks.readme())"
    rendered = run(sys.executable, "-c", command).removesuffix("\n")
    assert (PROJECT / "README.md").read_text() == rendered, "run python docs/notebooks.py"


def test_the_picture_of_the_rooms_is_drawn_from_the_imports() -> None:
    command = "import sys; sys.path.insert(0, 'docs'); import architecture as rooms; "
    drawn = run(sys.executable, "-c", f"{command}print(rooms.picture())").removesuffix("\n")
    assert (NBS / "images/architecture.svg").read_text() == drawn, "run docs/architecture.py"


def test_the_site_builds_and_its_links_hold(tmp_path: Path) -> None:
    run(script("mkdocs"), "build", "--strict", "--quiet", "--site-dir", tmp_path)
    assert "<h1" in (tmp_path / "index.html").read_text()


@each_notebook
def test_exported_functions_are_short(notebook: Path) -> None:
    """At most 80 cells; an exported function has at most 40 lines, a class as many as it needs."""
    cells = json.loads(notebook.read_text())["cells"]
    assert len(cells) <= 80
    for cell in cells:
        directive, _, source = "".join(cell["source"]).partition("\n")
        if cell["cell_type"] != "code" or not directive.startswith("#| export"):
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 40, f"divide {node.name}"


def test_tests_mirror_the_modules() -> None:
    """`tests/<room>/test_<module>.py` tests a module, `test_<room>.py` the face of its room."""
    apart = {"agent", "repository", "support", "system"}
    for path in sorted((PROJECT / "tests").rglob("test_*.py")):
        *folders, name = path.relative_to(PROJECT / "tests").with_suffix("").parts
        if apart.isdisjoint(folders):
            room, module = PACKAGE.joinpath(*folders), name.removeprefix("test_")
            mirrored = room / f"{module}.py"
            face = room / "__init__.py" if room.name == module else mirrored
            assert mirrored.exists() or face.exists(), f"{path.name} mirrors no module"


# --- configuration


def test_settings_and_nbdev_share_no_key() -> None:
    settings = ConfigParser()
    settings.read(PROJECT / "settings.ini")
    keys = {key for section in settings.sections() for key in settings[section]}
    assert not keys & pyproject()["tool"]["nbdev"].keys()


def test_the_version_is_the_newest_in_the_changelog() -> None:
    newest = re.search(r"^## (\S+)", (PROJECT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest
    assert newest[1] == pyproject()["project"]["version"] == agent_kit.__version__


def test_the_lock_file_knows_every_dependency() -> None:
    lock = tomllib.loads((PROJECT / "uv.lock").read_text())
    metadata = next(p["metadata"] for p in lock["package"] if p["name"] == "agent-kit")
    locked = {"": metadata["requires-dist"], **metadata["requires-dev"]}
    groups = pyproject()["dependency-groups"]
    wanted = {"": list(pyproject()["project"]["dependencies"]), **groups}
    for each in [each for each in groups["test"] if isinstance(each, dict)]:
        included = groups[each["include-group"]]
        wanted["test"] = [one for one in wanted["test"] if one is not each] + included
    for extra in pyproject()["project"]["optional-dependencies"].values():
        wanted[""] += extra
    for group, requirements in wanted.items():
        found = {
            f"{entry['name']}{extras(entry)}{entry.get('specifier', '')}" for entry in locked[group]
        }
        assert found == set(requirements), "run uv lock"


def extras(entry: dict) -> str:
    return f"[{','.join(entry['extras'])}]" if "extras" in entry else ""


def test_every_package_that_is_imported_is_declared() -> None:
    project = pyproject()["project"]
    extras = [each for extra in project["optional-dependencies"].values() for each in extra]
    # What an agent of a framework needs is there wherever such an agent is.
    extras += pyproject()["dependency-groups"]["frameworks"]
    declared = {
        re.split(r"[^\w-]", each)[0].lower() for each in [*project["dependencies"], *extras]
    }
    declared |= {"langchain-core"}
    # Parts of declared packages, released with them.
    declared |= {"pydantic_core", "pydantic-monty-client"}
    distributions = packages_distributions()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            for name in {name.split(".")[0] for name in names}:
                if name not in sys.stdlib_module_names and name != "agent_kit":
                    found = {each.lower() for each in distributions.get(name, [])}
                    assert not found or found & declared, f"{path.name} imports {name}"


def test_the_lock_file_names_the_public_registry_only() -> None:
    lock = tomllib.loads((PROJECT / "uv.lock").read_text())
    registries = {package["source"].get("registry") for package in lock["package"]}
    assert registries <= {None, "https://pypi.org/simple"}


# --- code


def test_lint() -> None:
    run(script("ruff"), "check", "--no-cache", "nbs", "tests", "benchmarks", "docs")
    # generated lines may be long; a name that no exported cell defines is an error
    run(script("ruff"), "check", "--no-cache", "--select", "F", "agent_kit")


def test_format() -> None:
    run(script("ruff"), "format", "--no-cache", "--check", "nbs", "tests", "benchmarks", "docs")


def test_types() -> None:
    run(script("pyright"), "--pythonpath", sys.executable)


def notebook_of(module: Path) -> Path:
    """The notebook that a module names as its source."""
    source = re.search(r"File to edit: (\S+\.ipynb)\.", module.read_text())
    return (module.parent / source[1]).resolve() if source else PROJECT / "missing"


def imported(module: Path) -> set[Path]:
    """The modules of this package that a module imports, anywhere in it."""
    found = set()
    package = ("agent_kit", *module.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            name = ".".join((*base, *filter(None, [node.module])))
            if all(alias.name.startswith("__") for alias in node.names):
                continue
            submodules = {f"{name}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= submodules or {name}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    paths = {MODULES.get(name) or MODULES.get(f"{name}.__init__") for name in found}
    return {path for path in paths if path}


def place(module: Path) -> tuple[int, str]:
    """Where a module stands: the rank of its room, then the number of its notebook."""
    return RANK.index(room_of(module, PACKAGE)), notebook_of(module).name


# What is imported when it is asked for: the chat of a server in a notebook, and the conversion of a
# request into messages.
UPWARD = {("server", "chat"), ("protocol", "protocol")}


@each_module
def test_a_module_imports_only_those_before_it(module: Path) -> None:
    below = {other for other in imported(module) if place(other) >= place(module)}
    pairs = {(room_of(module, PACKAGE), room_of(other, PACKAGE)) for other in below}
    assert pairs <= UPWARD


HEAVY = {"mlflow", "databricks", "openai", "numpy", "pandas", "sqlalchemy", "IPython", "nbdev"}


def test_imports_are_light() -> None:
    names = [name.removesuffix(".__init__") for name in MODULES]
    code = f"import sys, {', '.join(names)}; print(*sys.modules)"
    assert not HEAVY & set(run(sys.executable, "-c", code).split())


@each_module
def test_what_is_public_is_documented(module: Path) -> None:
    tree = ast.parse(module.read_text())
    public = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
    ]
    missing = [node.name for node in public if not ast.get_docstring(node)]
    assert not missing, f"without a docstring: {missing}"


# --- files


def tracked_files() -> list[Path]:
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    return [PROJECT / name for name in listed if (PROJECT / name).is_file()]


def test_no_file_names_a_place_on_one_machine() -> None:
    place = re.compile(rb"(?<![\w.$}])/(work|root|home/\w+|Users/\w+)/[\w.-]+")
    found = {
        str(path.relative_to(PROJECT)): match[0].decode()
        for path in tracked_files()
        if path.name != "uv.lock" and (match := place.search(path.read_bytes()))
    }
    assert not found


def test_the_readme_and_the_pipeline_run_the_same_tests() -> None:
    command = "uv run --group test pytest"
    assert f"pip install uv && {command}" in (PROJECT / "README.md").read_text()
    assert command in (PROJECT / ".ci/run").read_text().splitlines()
