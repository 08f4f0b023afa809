"""Options come from the environment and the command line; dangerous ones are refused at start-up."""

import os
import socket
from pathlib import Path

import pytest

from service.cli import main
from service.settings import Settings, is_loopback, read_settings


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SLIDEREASON_"):
            monkeypatch.delenv(name)


def test_every_option_can_stand_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    given = {"HOST": "localhost", "PORT": "9", "SLIDES": f"{one}{os.pathsep}{two}", "DATA": str(tmp_path / "data"),
             "MODEL": "paper", "MAX_OPEN_JOBS": "3", "CORS_ORIGINS": "https://a, https://b"}  # fmt: skip
    for name, value in given.items():
        monkeypatch.setenv(f"SLIDEREASON_{name}", value)
    settings = read_settings(port=None, model="tiny")
    assert (settings.host, settings.port, settings.max_open_jobs) == ("localhost", 9, 3)
    assert settings.slides == (one.resolve(), two.resolve())
    assert settings.data == tmp_path / "data"
    assert settings.model == "tiny", "the command line is above the environment"
    assert settings.cors_origins == ("https://a", "https://b")
    assert read_settings(slides=[two]).slides == (two.resolve(),)


def test_loopback_is_the_default() -> None:
    assert Settings().host == "127.0.0.1"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_binding_elsewhere_without_authentication_is_refused(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(ValueError, match="no authentication"):
        read_settings(host=host)


def test_another_host_needs_a_proxy_that_says_who_asks_or_known_names() -> None:
    with pytest.raises(ValueError, match="tenant_header.*or allowed_hosts"):
        read_settings(host="0.0.0.0", behind_proxy=True)
    for more in ({"tenant_header": "X-Tenant"}, {"allowed_hosts": ("gateway",)}):
        assert read_settings(host="0.0.0.0", behind_proxy=True, **more).host == "0.0.0.0"
        with pytest.raises(ValueError, match="no authentication"):
            read_settings(host="0.0.0.0", **more)


@pytest.mark.parametrize("header", ["", "X Tenant", "X-Tenant:", "x" * 65])
def test_a_tenant_header_is_the_name_of_a_header(header: str) -> None:
    with pytest.raises(ValueError, match="tenant_header"):
        read_settings(tenant_header=header)


def test_limits_and_logs_of_a_cluster_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"MAX_OPEN_JOBS": "10000", "MAX_OPEN_JOBS_PER_TENANT": "500", "LOG_FORMAT": "json", "LOG_LEVEL": "debug"}
    for name, value in given.items():
        monkeypatch.setenv(f"SLIDEREASON_{name}", value)
    settings = read_settings()
    assert (settings.max_open_jobs, settings.max_open_jobs_per_tenant) == (10_000, 500)
    assert (settings.log_format, settings.log_level) == ("json", "DEBUG")
    monkeypatch.setenv("SLIDEREASON_LOG_FORMAT", "xml")
    with pytest.raises(ValueError, match="log_format"):
        read_settings()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.4.5", "::1", "[::1]", "localhost"])
def test_loopback_addresses_are_accepted(host: str) -> None:
    assert read_settings(host=host).host == host


def test_the_command_says_what_is_wrong_and_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--host", "0.0.0.0", "--data", str(tmp_path / "data")]) == 2
    assert "no authentication" in capsys.readouterr().err
    assert main(["serve", "--slides", str(tmp_path / "nothing"), "--data", str(tmp_path / "data")]) == 2
    assert "slides: not a folder" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_a_taken_port_is_an_error_of_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port), "--data", str(tmp_path / "data")]) == 1
    error = capsys.readouterr().err
    assert f"127.0.0.1:{port}" in error
    assert "Traceback" not in error
    assert not (tmp_path / "data").exists()
