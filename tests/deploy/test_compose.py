"""docker-compose.yml: whole, pinned, closed to the outside, and with settings that gateway and worker accept."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.known import (
    DEPLOY,
    FILES,
    REPOSITORY,
    delivery_settings,
    gateway_settings,
    read_env_file,
    read_gateway,
    read_worker,
    secret_settings,
    unknown,
    worker_settings,
)

VARIABLE = re.compile(r"\$\$|\$\{(\w+)(?:(:?[-?])([^}]*))?\}")
SERVICE_KEYS = set(
    "build cap_drop command depends_on deploy entrypoint environment healthcheck image logging network_mode networks "
    "ports profiles read_only restart security_opt shm_size stop_grace_period tmpfs user volumes".split()
)
"""The keys of the Compose Specification that these files use; a misspelt one is in none."""
HEALTHCHECK_KEYS = {"test", "interval", "timeout", "retries", "start_period"}
OWN = ("gateway", "worker")
ONCE = ("bucket", "folders")


@cache
def raw(name: str = "docker-compose.yml") -> dict[str, Any]:
    return yaml.safe_load((REPOSITORY / name).read_text(encoding="utf-8"))


def filled(value: Any, given: dict[str, str]) -> Any:
    """A part of the file with its ${…} replaced, as Compose does."""
    if isinstance(value, dict):
        return {key: filled(item, given) for key, item in value.items()}
    if isinstance(value, list):
        return [filled(item, given) for item in value]
    if not isinstance(value, str):
        return value

    def fill(found: re.Match) -> str:
        name, kind, text = found.groups()
        if name is None:
            return "$"
        has = given.get(name) if kind and kind.startswith(":") else name in given
        if has:
            return given[name]
        assert kind and "?" not in kind, f"{name} is not set"
        return text

    return VARIABLE.sub(fill, value)


@pytest.fixture
def composed() -> dict[str, Any]:
    """The file as it is with an .env in which everything empty was set."""
    example = read_env_file(DEPLOY / "compose.env.example")
    return filled(raw(), {name: value or f"my-{name.lower()}" for name, value in example.items()})


@pytest.mark.parametrize("name", FILES)
def test_every_key_is_one_of_the_specification(name: str) -> None:
    file = raw(name)
    assert {key for key in file if not key.startswith("x-")} <= {"name", "services", "networks", "volumes"}
    for service, about in file["services"].items():
        assert about.keys() <= SERVICE_KEYS, service
        assert about.get("healthcheck", {}).keys() <= HEALTHCHECK_KEYS, service
        assert set(about.get("build", {})) <= {"context", "target", "args"}, service


def test_an_env_from_the_example_is_enough_and_has_nothing_more(composed: dict[str, Any]) -> None:
    text = "".join((REPOSITORY / name).read_text() for name in FILES)
    used = {name: (kind or "") for name, kind, _ in VARIABLE.findall(text) if name}
    example = (DEPLOY / "compose.env.example").read_text()
    required = {name for name, kind in used.items() if "?" in kind}
    assert required == read_env_file(DEPLOY / "compose.env.example").keys(), "what must be set stands uncommented"
    optional = set(re.findall(r"^#([A-Z_]+)=", example, re.MULTILINE))
    assert optional <= used.keys()
    with pytest.raises(AssertionError, match="is not set"):
        filled(raw(), {})


def test_images_are_pinned_or_built_from_a_target_of_the_dockerfile(composed: dict[str, Any]) -> None:
    dockerfile = (REPOSITORY / "Dockerfile").read_text()
    targets = set(re.findall(r"^FROM \S+ AS (\S+)$", dockerfile, re.MULTILINE))
    arguments = set(re.findall(r"^ARG (\w+)", dockerfile, re.MULTILINE))
    for name, service in composed["services"].items():
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+[\w.-]*", service["image"]), name
        assert ("build" in service) == (name in OWN), name
        assert service.get("build", {}).get("target") in (targets if name in OWN else {None})
        assert set(service.get("build", {}).get("args", ())) <= arguments


def test_services_wait_for_what_they_need_and_say_how_they_are(composed: dict[str, Any]) -> None:
    services = composed["services"]
    for name, service in services.items():
        assert ("healthcheck" in service) == (name not in ONCE), name
        assert "restart" in service, name
        for other, about in service.get("depends_on", {}).items():
            wanted = "service_completed_successfully" if other in ONCE else "service_healthy"
            assert about == {"condition": wanted}, (name, other)
    for name in OWN:
        assert {"redis", "postgres", *ONCE} <= services[name]["depends_on"].keys()


def test_volumes_and_networks_are_declared_and_used(composed: dict[str, Any]) -> None:
    mounted, joined = set(), set()
    for service in composed["services"].values():
        mounted |= {mount.partition(":")[0] for mount in service.get("volumes", ())}
        joined |= set(service.get("networks", ()))
    named = {source for source in mounted if "/" not in source}
    assert named - {"my-slides"} == composed["volumes"].keys()
    assert joined == composed["networks"].keys()
    for source in (source for source in mounted if source.startswith("./")):
        assert (REPOSITORY / source).exists(), source


def test_slides_are_read_only_and_lie_where_both_look_for_them(composed: dict[str, Any]) -> None:
    for name in OWN:
        assert "my-slides:/slides:ro" in composed["services"][name]["volumes"]
    gateway, worker = (composed["services"][name] for name in OWN)
    assert gateway["environment"]["SLIDEREASON_SLIDES"] == "/slides"
    data = gateway["environment"]["SLIDEREASON_DATA"]
    assert f"uploads:{data}" in gateway["volumes"] and f"uploads:{data}:ro" in worker["volumes"]
    assert f"scratch:{worker['environment']['SLIDEREASON_SCRATCH']}" in worker["volumes"]


def test_only_this_machine_reaches_it_and_workers_reach_nobody(composed: dict[str, Any]) -> None:
    for name, service in composed["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
    assert composed["networks"]["inside"] == {"internal": True}
    assert composed["services"]["worker"]["networks"] == ["inside"]
    for name in OWN:
        service = composed["services"][name]
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_a_gateway_accepts_its_settings(composed: dict[str, Any], monkeypatch, tmp_path: Path) -> None:
    environment = composed["services"]["gateway"]["environment"]
    assert unknown(environment, gateway_settings()) == []
    settings = read_gateway(environment, monkeypatch, tmp_path)
    assert settings.behind_proxy and settings.allowed_hosts == ("gateway",)
    assert settings.artifacts == "s3://slidereason/jobs"
    assert settings.database_url == "postgresql+psycopg://slidereason:my-postgres_password@postgres:5432/slidereason"


def test_a_worker_accepts_its_settings_and_has_time_to_drain(composed: dict[str, Any]) -> None:
    service = composed["services"]["worker"]
    assert unknown(service["environment"], worker_settings()) == []
    settings = read_worker(service["environment"])
    assert (settings.device, settings.health_port) == ("cpu", 9464)
    assert int(service["stop_grace_period"].removesuffix("s")) > settings.drain_s + 15
    both = [composed["services"][name]["environment"] for name in OWN]
    for name in ("BROKER_URL", "DATABASE_URL", "ARTIFACTS", "MODEL"):
        assert len({environment[f"SLIDEREASON_{name}"] for environment in both}) == 1, name


def test_each_part_is_given_the_settings_of_deliveries_that_it_reads() -> None:
    """What the operator sets in .env reaches gateway and worker alike, and each gets what it reads."""
    given = {name: f"as-set-{name.lower()}" for name in delivery_settings()[1]}
    example = read_env_file(DEPLOY / "compose.env.example")
    services = filled(raw(), {**{name: "set" for name in example}, **given})["services"]
    for part, wanted in zip(OWN, delivery_settings(), strict=True):
        environment = services[part]["environment"]
        assert {name: environment[name] for name in wanted} == {name: given[name] for name in wanted}, part
    assert not services["gateway"]["environment"].keys() & (delivery_settings()[1] - delivery_settings()[0])
    text = (DEPLOY / "compose.env.example").read_text()
    assert set(given) <= set(re.findall(r"^#(SLIDEREASON_\w+)=", text, re.MULTILINE))


def test_no_secret_of_deliveries_stands_in_the_files() -> None:
    defaults = filled(raw(), dict.fromkeys(read_env_file(DEPLOY / "compose.env.example"), "set"))["services"]
    for part in OWN:
        known = secret_settings() & defaults[part]["environment"].keys()
        assert known and all(defaults[part]["environment"][name] == "" for name in known)


def test_a_worker_reaches_the_outside_with_the_file_for_deliveries_only(composed: dict[str, Any]) -> None:
    over = filled(raw("docker-compose.deliver.yml"), {})["services"]
    assert over == {"worker": {"networks": ["inside", "outside"]}}
    assert composed["services"]["worker"]["networks"] == ["inside"]


def test_the_gpu_file_changes_the_worker_only(composed: dict[str, Any]) -> None:
    (name,) = raw("docker-compose.gpu.yml")["services"]
    over = filled(raw("docker-compose.gpu.yml"), {})["services"][name]
    assert name == "worker" and over["image"].endswith("-cuda")
    settings = read_worker({**composed["services"]["worker"]["environment"], **over["environment"]})
    assert settings.device == "cuda"
    (device,) = over["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "device_ids": ["0"], "capabilities": ["gpu"]}


def test_redis_keeps_its_tickets_and_the_store_its_keys(composed: dict[str, Any]) -> None:
    services = composed["services"]
    command = services["redis"]["command"]
    assert command[command.index("--appendonly") + 1] == "yes" and "redis:/data" in services["redis"]["volumes"]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert len({services[part]["environment"][name] for part in (*OWN, "store")}) == 1
    (script,) = services["bucket"]["command"]
    assert script.count('echo "$1"') == 1, "$$ is Compose's $"
    bucket = services["gateway"]["environment"]["SLIDEREASON_ARTIFACTS"].split("/")[2]
    assert f"s3.bucket.create -name {bucket}" in script
