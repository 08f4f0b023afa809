"""The house rules that a reader relies on: what is documented, what may be imported, what may lie in the repository."""

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("service", "worker", "model")
COMMAND_FILES = (
    "service/serve.py", "worker/cli.py", "model/cli.py", "model/checkpoint_cli.py", "model/training/cli.py",
    "model/dataset_cli.py", "model/chains_cli.py", "service/jobs_cli.py", "worker/ledger_cli.py",
)  # fmt: skip
MAX_WEIGHTS_BYTES = 25 * 2**20
MAX_LINES = 400
MAX_TEST_LINES = 500
TEXT = set(".py .md .toml .json .jsonl .sh .lock .j2 .html .css .js .yml .yaml .txt".split()) | {""}


@cache
def tracked() -> tuple[Path, ...]:
    """Files that git tracks, or, outside a clone, everything that an archive would hold."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git clone: nothing says which files belong to the repository")
    return tuple(path for name in listed.stdout.split("\0") if name and (path := REPOSITORY / name).is_file())


@cache
def pyproject() -> dict:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


@cache
def documentation() -> str:
    """README and docs as one text."""
    pages = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
    return "\n".join(page.read_text(encoding="utf-8") for page in pages)


def run_python(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# What is imported


def test_the_gateway_starts_without_torch_or_the_model():
    code = """
import sys, tempfile, pkgutil, importlib
import service, service.routes
for package in (service, service.routes):
    for room in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(room.name)
from service.app import create_app
from service.settings import read_settings
with tempfile.TemporaryDirectory() as folder:
    app = create_app(read_settings(data=folder, broker_url="memory://"))
    assert app.openapi()["paths"]
    app.state.rooms.close()
heavy = {"torch", "transformers", "tokenizers", "model"}
print(sorted(name for name in sys.modules if name.partition(".")[0] in heavy))
"""
    assert run_python(code).strip() == "[]"


def test_the_commands_can_be_listed_without_torch():
    code = "import sys; from service.cli import main; main(['--help']); print({'torch', 'model'} & sys.modules.keys())"
    lines = run_python(code).splitlines()
    assert lines[-1] == "set()"
    assert all(any(line.strip().startswith(name) for line in lines) for name in commands())


# What is documented


def commands() -> list[str]:
    return ["serve", "jobs", *pyproject()["project"]["entry-points"]["slidereason.commands"]]


def options() -> list[tuple[str, str]]:
    """(file, option) of every option that a command takes."""
    found = []
    for name in COMMAND_FILES:
        for node in ast.walk(ast.parse((REPOSITORY / name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
                found += [
                    (name, argument.value)
                    for argument in node.args
                    if isinstance(argument, ast.Constant) and str(argument.value).startswith("--")
                ]
    return found


def test_every_command_and_option_is_documented():
    page = (REPOSITORY / "docs" / "command-line.md").read_text(encoding="utf-8")
    assert len(options()) > 30
    assert [name for name in commands() if f"slidereason {name}" not in page] == []
    assert [option for _, option in options() if f"`{option}`" not in page] == []


def test_every_entry_point_exists():
    for place in pyproject()["project"]["entry-points"]["slidereason.commands"].values():
        module, _, function = place.partition(":")
        tree = ast.parse((REPOSITORY / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, place


def test_every_setting_is_documented():
    from service.settings import Settings
    from worker.worker_main import WorkerSettings

    names = {*Settings.model_fields, *WorkerSettings.__annotations__}
    assert len(names) > 20
    page = (REPOSITORY / "docs" / "command-line.md").read_text(encoding="utf-8")
    assert [name for name in sorted(names) if f"`SLIDEREASON_{name.upper()}`" not in page] == []


def test_every_route_is_documented_and_every_documented_route_exists(tmp_path: Path):
    from service.app import create_app
    from service.settings import read_settings

    app = create_app(read_settings(data=tmp_path, broker_url="memory://"))
    app.state.rooms.close()
    methods = {"get", "post", "put", "patch", "delete"}
    paths = app.openapi()["paths"]
    served = {f"{method.upper()} {path}" for path, item in paths.items() for method in item if method in methods}
    page = (REPOSITORY / "docs" / "rest-api.md").read_text(encoding="utf-8")
    table = {call for call in re.findall(r"^\| `((?:GET|POST|PUT|PATCH|DELETE) [^`]+)` \|", page, re.MULTILINE)}
    assert served == table


def test_every_field_of_a_job_is_documented():
    from service.schemas import JobRequest

    page = (REPOSITORY / "docs" / "rest-api.md").read_text(encoding="utf-8")
    assert [name for name in JobRequest.model_fields if f"`{name}`" not in page] == []


def test_every_error_status_is_documented():
    from service.errors import CODES, STATUS

    page = (REPOSITORY / "docs" / "rest-api.md").read_text(encoding="utf-8").partition("## Errors")[2]
    said = set(re.findall(r"\b[45]\d\d\b", page))
    own = {str(status) for _, status in STATUS}
    assert own <= said
    assert {str(status) for status in CODES} - said <= {"405", "416", "421", "500"}  # HTTP's own meaning


def test_every_benchmark_is_documented():
    from benchmarks.run import NAMES

    page = (REPOSITORY / "docs" / "development.md").read_text(encoding="utf-8")
    assert [name for name in NAMES if f"| `{name}` |" not in page] == []


def test_make_targets_that_documents_name_exist():
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^ {4}|`)make ([a-z]+)", documentation(), re.MULTILINE))
    assert named and named <= targets


def test_links_between_documents_lead_somewhere():
    pages = [path for path in tracked() if path.suffix == ".md"]
    assert pages
    for page in pages:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} → {target}"


# What lies in the repository


def test_every_module_says_what_it_is():
    silent = []
    for path in tracked():
        if path.suffix == ".py" and path.name != "__init__.py":
            if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))):
                silent.append(path.relative_to(REPOSITORY))
    assert silent == []


def test_files_stay_short_enough_to_read():
    code = [path for path in tracked() if path.suffix == ".py" and "vendor" not in path.parts]
    long = {}
    for path in code:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > (MAX_TEST_LINES if "tests" in path.parts else MAX_LINES):
            long[str(path.relative_to(REPOSITORY))] = lines
    assert long == {}


def test_no_path_of_anybodys_machine_and_no_secret():
    paths = r"(?<![\w.}])/(?:root|work|opt|Users/\w+)/(?!path\b)"
    secrets = r"AKIA[0-9A-Z]{16}|PRIVATE KEY-|\bgh[opsu]_\w{20}"
    suspicious = re.compile(f"{paths}|{secrets}")
    found = {}
    for path in tracked():
        if path.suffix in TEXT and path != Path(__file__).resolve() and path.name != "LICENSE":
            hits = suspicious.findall(path.read_text(encoding="utf-8", errors="replace"))
            if hits:
                found[str(path.relative_to(REPOSITORY))] = hits[:3]
    assert found == {}


def test_shipped_weights_are_small_and_safetensors():
    weights = [path for path in tracked() if "checkpoints" in path.parts and path.suffix not in TEXT]
    assert [path.name for path in weights if path.suffix != ".safetensors"] == []
    assert [path.name for path in weights if path.stat().st_size > MAX_WEIGHTS_BYTES] == []
    if weights:
        assert (REPOSITORY / "MODEL_CARD.md").exists()


def test_nothing_large_but_weights_is_tracked():
    large = [p for p in tracked() if p.stat().st_size > 2 * 2**20 and p.suffix != ".safetensors"]
    assert large == []


# What is locked


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked() -> dict[str, str]:
    """Package → version, of the lines that hold for this Python."""
    from packaging.requirements import Requirement

    lines = (REPOSITORY / "requirements.lock").read_text().splitlines()
    found = [Requirement(line) for line in lines if re.match(r"[\w.-]+==", line)]
    here = [need for need in found if need.marker is None or need.marker.evaluate()]
    return {normal(need.name): str(need.specifier).removeprefix("==") for need in here}


def declared() -> set[str]:
    project = pyproject()["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    return {normal(re.match(r"[\w.-]+", line).group()) for line in lines}


def test_everything_declared_is_locked_but_torch_and_no_cuda_is():
    assert declared() - locked().keys() == {"torch"}
    assert [name for name in locked() if name.startswith(("nvidia", "cuda", "triton"))] == []


def test_torch_is_one_exact_version_and_its_cpu_build_is_installed():
    from importlib.metadata import version

    (pin,) = [line for line in pyproject()["project"]["optional-dependencies"]["worker"] if line.startswith("torch")]
    assert re.fullmatch(r"torch==\d+\.\d+\.\d+", pin)
    assert version("torch") == pin.removeprefix("torch==") + "+cpu"


def test_what_is_installed_is_what_is_locked():
    from importlib.metadata import distributions

    installed = {normal(found.metadata["Name"]): found.version for found in distributions() if found.metadata["Name"]}
    wrong = {name: installed[name] for name, version in locked().items() if installed.get(name, version) != version}
    assert wrong == {}


def test_every_package_that_is_imported_is_declared():
    from importlib.metadata import packages_distributions

    known = packages_distributions()
    allowed = declared() | {"slidereason", "starlette", "kombu", "affine", "redis-server"}  # parts of what is declared
    missing = {}
    for path in tracked():
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for name in {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names):
                if name in (*PACKAGES, "tests", "benchmarks"):
                    continue
                if not {normal(found) for found in known.get(name, [name])} & allowed:
                    missing.setdefault(name, path.name)
    assert missing == {}
