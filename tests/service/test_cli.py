"""The command lists everything and imports only what it runs; the gateway is free of torch."""

import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from service import cli

HEAVY = ("torch", "transformers", "segment_anything", "model")


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run code in a fresh interpreter, at the repository's root."""
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=root, capture_output=True, text=True, timeout=120, check=False
    )


def test_help_lists_every_command_without_importing_any() -> None:
    code = "import sys, json, service.cli; service.cli.main(['--help']); print(json.dumps(sorted(sys.modules)))"
    found = run_python(code)
    assert found.returncode == 0, found.stderr
    *usage, modules = found.stdout.splitlines()
    assert not set(HEAVY) & set(json.loads(modules))
    assert "fastapi" not in json.loads(modules)
    listed = {line.split()[0] for line in usage if line.startswith("  ")}
    assert "serve" in listed
    assert {name for name in cli.commands()} == listed


def test_an_entry_point_is_loaded_when_it_is_called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "late_command.py").write_text("def run(argv):\n    print('ran', *argv)\n    return 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    points = [EntryPoint("late", "late_command:run", cli.GROUP), EntryPoint("gone", "no_such_module:run", cli.GROUP)]
    monkeypatch.setattr(cli, "entry_points", lambda group: points if group == cli.GROUP else [])
    assert "late" in cli.usage()
    assert "late_command" not in sys.modules
    assert cli.main(["late", "a", "--b"]) == 3
    assert "late_command" in sys.modules


def test_an_unknown_command_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sreve"]) == 2
    assert "serve" in capsys.readouterr().err


def test_no_command_is_an_error_and_version_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("slidereason ")


GATEWAY = """
import json, sys
from pathlib import Path
from fastapi.testclient import TestClient
from service.app import create_app
from service.settings import Settings
before = sorted(sys.modules)
data = Path(sys.argv[1])
app = create_app(Settings(data=data, broker_url=f"redis+socket://{data}/none.sock", slides=(Path(sys.argv[2]),)))
with TestClient(app, base_url="http://127.0.0.1") as client:
    paths = ("/healthz", "/v1/jobs", "/v1/slides", "/v1/models", "/openapi.json")
    answers = [client.get(path).status_code for path in paths]
    job = client.post("/v1/jobs", json={"slide": "good.tif", "query": "Where?"})
print(json.dumps([before, sorted(sys.modules), answers, job.status_code]))
"""


def test_the_gateway_never_imports_torch(tmp_path: Path, slide_folder: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLIDEREASON_")}
    assert environment
    found = run_python(GATEWAY, str(tmp_path / "data"), str(slide_folder))
    assert found.returncode == 0, found.stderr
    before, after, answers, job = json.loads(found.stdout.splitlines()[-1])
    assert answers == [200] * 5
    assert job == 202
    for name in HEAVY:
        assert name not in before, f"{name} imported with the gateway"
        assert name not in after, f"{name} imported while answering"
