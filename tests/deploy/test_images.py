"""The images: what the Dockerfile says, and its very install steps, run in new virtual environments."""

import fnmatch
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from tests.deploy.known import REPOSITORY
from worker.embedded import find_redis_server

INSTALL = REPOSITORY / "deploy" / "images" / "install.sh"
GATEWAY_LIMIT_BYTES = 400 * 10**6
STARTS_WITHIN_S = 60
NO_NETWORK = re.compile(r"Max retries|Temporary failure|Name or service not known|ProxyError|ConnectTimeout|reachable")
TORCH = ("torch", "transformers", "tokenizers", "safetensors", "cv2", "rasterio")


@cache
def stages() -> dict[str, list[tuple[str, str]]]:
    """Stage of the Dockerfile → its (instruction, text), lines joined; the first entry is its FROM."""
    text = re.sub(r"\\\n\s*", "", (REPOSITORY / "Dockerfile").read_text(encoding="utf-8"))
    found: dict[str, list[tuple[str, str]]] = {"": []}
    name = ""
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            word, _, rest = line.partition(" ")
            if word == "FROM":
                name = rest.rpartition(" AS ")[2]
                found[name] = []
            found[name].append((word, rest.strip()))
    return found


def instruction(stage: str, word: str) -> list[str]:
    return [text for name, text in stages()[stage] if name == word]


def command_of(stage: str) -> list[str]:
    """CMD in its exec form; a shell form is no JSON."""
    (text,) = instruction(stage, "CMD")
    return json.loads(text)


def test_there_are_a_gateway_and_a_worker_of_one_base() -> None:
    assert list(stages()) == ["", "source", "gateway-installed", "worker-installed", "base", "gateway", "worker"]
    assert instruction("", "ARG") == ["PYTHON_IMAGE=python:3.11-slim-bookworm"]
    for part in ("gateway", "worker"):
        assert instruction(part, "FROM") == [f"base AS {part}"]
        assert instruction(part, "USER") == ["10001:10001"]
        assert instruction(part, "COPY") == [f"--from={part}-installed /app /app"], "no source, no build tools"
        (run,) = instruction(f"{part}-installed", "RUN")
        assert run.endswith(f"deploy/images/install.sh {part} /app")
        (health,) = instruction(part, "HEALTHCHECK")
        assert "/healthz" in health and instruction(part, "EXPOSE")[0] in health
        assert command_of(part)
    assert instruction("base", "ENTRYPOINT") == ['["tini", "--"]'], "signals reach the process"


def test_the_last_layers_have_no_build_tools_and_no_pip() -> None:
    (run,) = instruction("base", "RUN")
    assert re.findall(r"apt-get install (?:--\S+ )+(\w[\w -]*?) &&", run.replace("    ", " ")) == ["tini"]
    assert "pip uninstall" in run
    for part in ("gateway", "worker"):
        assert not instruction(part, "RUN")


def test_torch_is_an_argument_of_the_worker_only() -> None:
    assert instruction("worker-installed", "ARG") == ["TORCH=", "TORCH_INDEX="]
    assert not instruction("gateway-installed", "ARG")


def test_everything_that_is_copied_exists_and_is_not_ignored() -> None:
    rules = [line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    kept = {line[1:] for line in rules if line.startswith("!")}
    copied = {name for line in instruction("source", "COPY") for name in line.split()[:-1]}
    assert rules[0] == "*" and copied == kept
    for name in copied:
        assert (REPOSITORY / name).exists()
    assert any(fnmatch.fnmatch("a/__pycache__", rule.replace("**/", "*/")) for rule in rules)


def test_commands_of_the_images_are_known() -> None:
    from service.cli import commands

    program, *arguments = command_of("worker")
    assert program == "slidereason" and arguments[0] in commands()
    program, *arguments = command_of("gateway")
    assert program == "uvicorn" and "service.app:create_app" in arguments


def test_the_script_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    for arguments, said in (
        (["viewer", str(tmp_path / "new")], "accepted are gateway and worker"),
        (["gateway"], "name the folder"),
        (["gateway", str(tmp_path)], "exists"),
    ):
        done = subprocess.run([INSTALL, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 2 and said in done.stderr


def load_verify() -> ModuleType:
    """The script that the images verify themselves with."""
    spec = importlib.util.spec_from_file_location("verify", INSTALL.with_name("verify.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def install(part: str, folder: Path, **environment: str) -> str:
    """Run the images' install script; what it prints. Skips when no package index can be reached."""
    given = {**os.environ, "PYTHON": getattr(sys, "_base_executable", sys.executable), **environment}
    given.pop("PYTHONPATH", None)
    done = subprocess.run(
        [INSTALL, part, folder], env=given, capture_output=True, text=True, timeout=800, check=False
    )
    if done.returncode and NO_NETWORK.search(done.stderr):
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict]]:
    """(environment, what was verified of it), as in the image `gateway`."""
    folder = tmp_path_factory.mktemp("gateway") / "app"
    told = install("gateway", folder)
    yield folder, json.loads(told.splitlines()[-1])
    shutil.rmtree(folder)


@pytest.mark.slow
def test_a_gateway_is_small_and_has_no_torch(gateway: tuple[Path, dict], tmp_path: Path) -> None:
    folder, verified = gateway
    size = sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    assert abs(verified["megabytes"] - size / 1e6) < 5
    assert size < GATEWAY_LIMIT_BYTES
    code = (
        "import importlib.util, sys, service.app, worker.slides, worker.outlines; "
        f"print([name for name in {TORCH} if importlib.util.find_spec(name)], 'model' in sys.modules)"
    )
    command = [folder / "bin" / "python", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[] False", done.stderr
    assert not (folder / "bin" / "pip").exists()


@contextmanager
def running(command: list, environment: dict[str, str], folder: Path) -> Iterator[subprocess.Popen]:
    """A process, ended at last by SIGTERM."""
    with (folder / f"{Path(command[0]).name}.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def status_of(url: str, process: subprocess.Popen) -> int:
    """Status of an answer, waited for until the server listens."""
    deadline = time.monotonic() + STARTS_WITHIN_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, "the gateway did not start"
            time.sleep(0.1)


@pytest.mark.slow
def test_a_gateway_serves_by_the_images_own_command(gateway: tuple[Path, dict], tmp_path: Path) -> None:
    folder, _ = gateway
    port, redis = free_port(), tmp_path / "redis.sock"
    (line,) = [line for line in instruction("gateway", "ENV") if "SLIDEREASON_HOST" in line]
    environment = {
        "PATH": f"{folder / 'bin'}:/usr/bin:/bin", "HOME": str(tmp_path), "SLIDEREASON_DATA": str(tmp_path / "data"),
        "SLIDEREASON_BROKER_URL": f"redis+socket://{redis}", **dict(part.split("=", 1) for part in line.split()),
    }  # fmt: skip
    command = [str(folder / "bin" / "uvicorn"), *command_of("gateway")[1:]]
    command = [{"0.0.0.0": "127.0.0.1", "8000": str(port)}.get(part, part) for part in command]

    refused = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert refused.returncode and "behind_proxy" in refused.stderr, "nobody stands in front"

    environment |= {"SLIDEREASON_BEHIND_PROXY": "1", "SLIDEREASON_TENANT_HEADER": "X-Tenant"}
    server = [find_redis_server(), "--port", "0", "--unixsocket", str(redis), "--save", "", "--dir", str(tmp_path)]
    with running(server, environment, tmp_path), running(command, environment, tmp_path) as process:
        base = f"http://127.0.0.1:{port}"
        assert status_of(f"{base}/healthz", process) == 200
        assert status_of(f"{base}/readyz?exclude=worker", process) == 200
        assert status_of(f"{base}/v1/jobs", process) in (401, 403), "a request without a tenant"
        (health,) = instruction("gateway", "HEALTHCHECK")
        check = [part.replace("8000", str(port)) for part in json.loads(health.partition(" CMD ")[2])]
        assert subprocess.run(check, env=environment, check=False).returncode == 0
    assert process.returncode in (0, -signal.SIGTERM)


def test_only_what_the_lock_has_is_let_through(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verify = load_verify()
    lock = (REPOSITORY / "requirements.lock").read_text()
    wrong = tmp_path / "lock"
    wrong.write_text(lock.replace("\nfastapi==", "\nfastapi==0.0."))
    assert verify.main("gateway", wrong) == 1
    said = capsys.readouterr().err
    assert re.search(r"^verify: fastapi \S+ is not the lock's 0\.0\.", said, re.MULTILINE)
    assert "verify: pytest is not asked for" in said and "verify: torch in a gateway" in said
    assert not re.search(r"^verify: uvicorn", said, re.MULTILINE)


@pytest.mark.slow
def test_a_worker_is_resolved_to_the_lock(tmp_path: Path) -> None:
    """Nothing is downloaded but what must be to read what it needs; torch is whichever build the index has."""
    report = tmp_path / "report.json"
    told = install("worker", tmp_path / "app", DRY_RUN="1", REPORT=str(report))
    assert "worker can be resolved" in told
    verify = load_verify()
    locked = verify.read_lock(REPOSITORY / "requirements.lock")
    found = {
        verify.canonical(one["metadata"]["name"]): one["metadata"]["version"]
        for one in json.loads(report.read_text())["install"]
    }
    assert found.pop("torch").partition("+")[0] in (REPOSITORY / "pyproject.toml").read_text()
    assert found.pop("slidereason")
    assert {"transformers", "rasterio", "opencv-python-headless", "opentelemetry-sdk"} <= found.keys()
    cuda = {name for name in found if name.startswith(("nvidia-", "cuda-", "triton"))}
    assert {name: version for name, version in found.items() if name not in cuda and locked.get(name) != version} == {}
