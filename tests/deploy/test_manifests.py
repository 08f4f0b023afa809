"""The Kubernetes manifests as kustomize renders them: valid, restricted, with settings that are accepted."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.deploy.known import (
    COMPOSE_ONLY,
    DEPLOY,
    FILES,
    PLACEHOLDERS,
    REPOSITORY,
    WORKER_PLACEHOLDERS,
    delivery_settings,
    gateway_settings,
    metric_names,
    metrics_in,
    named_in_code,
    read_env_file,
    read_gateway,
    read_worker,
    secret_settings,
    unknown,
    worker_settings,
)

OVERLAYS = ("cpu", "gpu")
SECRETS = {
    "slidereason": ({}, PLACEHOLDERS),
    "slidereason-worker": ({"optional": True}, WORKER_PLACEHOLDERS),
}
"""By name: how a container refers to it, and what it holds."""
WITHOUT_SCHEMA = {"ScaledObject"}
MAPPING = dict[str, Any]


@cache
def render(overlay: str) -> tuple[MAPPING, ...]:
    """The objects of an overlay; skips where neither kubectl nor kustomize is installed."""
    if shutil.which("kubectl"):
        command = ["kubectl", "kustomize"]
    elif shutil.which("kustomize"):
        command = ["kustomize", "build"]
    else:
        pytest.skip("neither kubectl nor kustomize is installed")
    done = subprocess.run(
        [*command, str(DEPLOY / "overlays" / overlay)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr.lower(), done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


@pytest.fixture(params=OVERLAYS)
def objects(request: pytest.FixtureRequest) -> tuple[MAPPING, ...]:
    return render(request.param)


def find(objects: tuple[MAPPING, ...], kind: str, name: str) -> MAPPING:
    (found,) = [one for one in objects if one["kind"] == kind and one["metadata"]["name"] == name]
    return found


def pods(objects: tuple[MAPPING, ...]) -> Iterator[tuple[str, MAPPING]]:
    """(name, pod template) of everything that runs."""
    for one in objects:
        if one["kind"] in ("Deployment", "StatefulSet"):
            yield one["metadata"]["name"], one["spec"]["template"]


def environment_of(objects: tuple[MAPPING, ...], name: str) -> dict[str, str]:
    """What the container of a deployment finds in its environment; the Secrets' part are placeholders."""
    (container,) = find(objects, "Deployment", name)["spec"]["template"]["spec"]["containers"]
    found: dict[str, str] = {}
    for source in container["envFrom"]:
        if "configMapRef" in source:
            found |= find(objects, "ConfigMap", source["configMapRef"]["name"])["data"]
        else:
            secret = source["secretRef"]["name"]
            how, holds = SECRETS[secret]
            assert source == {"secretRef": {"name": secret, **how}}
            found |= holds
    return found


def test_every_object_is_valid(objects: tuple[MAPPING, ...]) -> None:
    checked = 0
    for one in objects:
        if one["kind"] in WITHOUT_SCHEMA:
            continue
        kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)
        checked += 1
    assert checked >= 18
    names = [(one["kind"], one["metadata"]["name"]) for one in objects]
    assert len(set(names)) == len(names)
    assert {one["metadata"].get("namespace", "slidereason") for one in objects} == {"slidereason"}


def test_the_validator_would_find_a_misspelt_field() -> None:
    deployment = yaml.safe_load(yaml.safe_dump(find(render("cpu"), "Deployment", "worker")))
    deployment["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, kubernetes_validate.latest_version(), strict=True)


def test_a_gateway_accepts_its_settings(objects: tuple[MAPPING, ...], monkeypatch, tmp_path: Path) -> None:
    environment = environment_of(objects, "gateway")
    assert unknown(environment, gateway_settings()) == []
    settings = read_gateway(environment, monkeypatch, tmp_path)
    assert settings.tenant_header and settings.behind_proxy and settings.artifacts.startswith("s3://")
    grace = find(objects, "Deployment", "gateway")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > settings.shutdown_delay_s + 20


def test_a_worker_accepts_its_settings_and_has_time_to_drain(objects: tuple[MAPPING, ...]) -> None:
    environment = environment_of(objects, "worker")
    assert unknown(environment, worker_settings()) == []
    settings = read_worker(environment)
    spec = find(objects, "Deployment", "worker")["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] >= settings.drain_s + 20
    assert spec["containers"][0]["ports"] == [{"name": "health", "containerPort": settings.health_port}]
    assert settings.health_host == "0.0.0.0" and settings.sweep_s > settings.lease_s
    shared = environment_of(objects, "gateway")
    for name in ("BROKER_URL", "DATABASE_URL", "ARTIFACTS", "MODEL"):
        assert environment[f"SLIDEREASON_{name}"] == shared[f"SLIDEREASON_{name}"]


def test_the_secrets_hold_what_no_map_does(objects: tuple[MAPPING, ...]) -> None:
    assert read_env_file(DEPLOY / "secret.env.example").keys() == PLACEHOLDERS.keys()
    assert read_env_file(DEPLOY / "worker-secret.env.example").keys() == WORKER_PLACEHOLDERS.keys()
    held = PLACEHOLDERS.keys() | WORKER_PLACEHOLDERS.keys()
    assert secret_settings() <= held
    for one in objects:
        assert one["kind"] != "Secret"
        if one["kind"] == "ConfigMap":
            assert not one["data"].keys() & held


def test_each_part_is_given_the_settings_of_deliveries_that_it_reads(objects: tuple[MAPPING, ...]) -> None:
    for name, wanted in zip(("gateway", "worker"), delivery_settings(), strict=True):
        environment = environment_of(objects, name)
        assert wanted <= environment.keys(), name
        assert set(environment) & delivery_settings()[1] == wanted, f"{name} gets no more than it reads"
    worker = environment_of(objects, "worker")
    for name in delivery_settings()[0]:
        assert worker[name] == environment_of(objects, "gateway")[name]


@pytest.mark.parametrize(
    "path", [REPOSITORY / name for name in FILES] + sorted(path for path in DEPLOY.rglob("*") if path.is_file()),
    ids=lambda path: path.name,
)  # fmt: skip
def test_every_setting_that_a_file_names_is_one_that_the_code_reads(path: Path) -> None:
    named = set(re.findall(r"\bSLIDEREASON_[A-Z0-9_]*[A-Z0-9]\b", path.read_text(encoding="utf-8")))
    assert named - COMPOSE_ONLY <= named_in_code()


def test_pods_are_restricted(objects: tuple[MAPPING, ...]) -> None:
    """As Pod Security's `restricted` wants it, and more: no token, and a root file system that stays as it is."""
    assert find(objects, "Namespace", "slidereason")["metadata"]["labels"][
        "pod-security.kubernetes.io/enforce"
    ] == "restricted"  # fmt: skip
    for name, template in pods(objects):
        spec = template["spec"]
        context = spec["securityContext"]
        assert context["runAsNonRoot"] and context["runAsUser"] > 0, name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["automountServiceAccountToken"] is False
        assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}
        assert all("hostPath" not in volume for volume in spec.get("volumes", ()))
        for container in (*spec.get("initContainers", ()), *spec["containers"]):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False and context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"] and container["resources"]["requests"]["cpu"]
            assert re.fullmatch(r"[\w./-]+:\d+\.\d+[\w.-]*", container["image"]), "pinned"


def test_every_container_is_probed_on_a_port_it_has(objects: tuple[MAPPING, ...]) -> None:
    paths: dict[str, str] = {}
    for name, template in pods(objects):
        for container in template["spec"]["containers"]:
            ports = {port["name"] for port in container["ports"]}
            for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
                probe = container[kind]
                if name == "redis":
                    assert probe["exec"]["command"] == ["redis-cli", "ping"]
                else:
                    assert probe["httpGet"]["port"] in ports
                    paths[f"{name} {kind}"] = probe["httpGet"]["path"]
    assert paths["worker readinessProbe"] == "/readyz"
    assert {path.partition("?")[0] for path in paths.values()} == {"/healthz", "/readyz"}
    excluded = re.findall(r"exclude=(\w+)", paths["gateway readinessProbe"])
    from service.routes.health import Check

    assert set(excluded) == {"worker", "broker", "artifacts"} < set(Check.__args__)


def test_mounts_volumes_and_claims_fit(objects: tuple[MAPPING, ...]) -> None:
    claims = {one["metadata"]["name"] for one in objects if one["kind"] == "PersistentVolumeClaim"}
    for name, template in pods(objects):
        volumes = {volume["name"]: volume for volume in template["spec"].get("volumes", ())}
        (container,) = template["spec"]["containers"]
        mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
        if name == "redis":
            continue
        assert mounts.keys() == volumes.keys()
        assert mounts["slides"] == {"name": "slides", "mountPath": "/slides", "readOnly": True}
        used = {volume["persistentVolumeClaim"]["claimName"] for volume in volumes.values() if len(volume) == 2
                and "persistentVolumeClaim" in volume}  # fmt: skip
        assert used == claims
        if name == "gateway":
            assert mounts["uploads"]["mountPath"] == environment_of(objects, name)["SLIDEREASON_DATA"]
        else:
            assert mounts["uploads"]["readOnly"] and mounts["uploads"]["mountPath"] == "/data"
            assert mounts["scratch"]["mountPath"] == environment_of(objects, name)["SLIDEREASON_SCRATCH"]


def test_the_ledger_is_upgraded_before_a_gateway_starts(objects: tuple[MAPPING, ...]) -> None:
    spec = find(objects, "Deployment", "gateway")["spec"]["template"]["spec"]
    (first,), (gateway,) = spec["initContainers"], spec["containers"]
    assert first["args"] == ["slidereason", "ledger", "upgrade"]
    assert first["image"] == gateway["image"] and first["envFrom"] == gateway["envFrom"]


def test_workers_scale_with_what_there_is_to_do(objects: tuple[MAPPING, ...]) -> None:
    scaled = find(objects, "ScaledObject", "worker")
    assert scaled["apiVersion"] == "keda.sh/v1alpha1"
    spec = scaled["spec"]
    assert spec["scaleTargetRef"] == {"name": "worker"}
    assert 1 <= spec["minReplicaCount"] < spec["maxReplicaCount"]
    assert spec.keys() <= {
        "scaleTargetRef", "pollingInterval", "cooldownPeriod", "minReplicaCount", "maxReplicaCount", "fallback",
        "advanced", "triggers",
    }  # fmt: skip
    (trigger,) = spec["triggers"]
    assert (trigger["type"], trigger["metricType"]) == ("prometheus", "AverageValue"), "fallback wants AverageValue"
    assert trigger["metadata"].keys() == {"serverAddress", "query", "threshold", "ignoreNullValues"}
    assert all(isinstance(value, str) for value in trigger["metadata"].values())
    used = metrics_in(trigger["metadata"]["query"])
    assert used == {"slidereason_queue_units", "slidereason_units_leased"} <= metric_names()
    threads = int(environment_of(objects, "worker")["SLIDEREASON_BLOCK_THREADS"])
    assert int(trigger["metadata"]["threshold"]) == 2 * threads
    for name in ("gateway", "worker"):
        assert "replicas" not in find(objects, "Deployment", name)["spec"], "an autoscaler has them"


def test_gateways_scale_by_cpu(objects: tuple[MAPPING, ...]) -> None:
    spec = find(objects, "HorizontalPodAutoscaler", "gateway")["spec"]
    assert spec["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "gateway"}
    assert spec["minReplicas"] >= 2
    assert spec["metrics"][0]["resource"]["name"] == "cpu"


def test_budgets_services_and_spread_select_the_pods(objects: tuple[MAPPING, ...]) -> None:
    labels = {name: template["metadata"]["labels"].items() for name, template in pods(objects)}
    for one in objects:
        name, spec = one["metadata"]["name"], one.get("spec", {})
        if one["kind"] == "PodDisruptionBudget":
            assert spec["selector"]["matchLabels"].items() <= labels[name] and "maxUnavailable" in spec
        elif one["kind"] == "Service":
            assert spec["selector"].items() <= labels[name]
        elif one["kind"] == "Deployment":
            assert spec["selector"]["matchLabels"].items() <= labels[name]
            spread = spec["template"]["spec"]["topologySpreadConstraints"]
            assert [rule["topologyKey"] for rule in spread] == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
            assert all(rule["labelSelector"]["matchLabels"].items() <= labels[name] for rule in spread)
    budgets = {one["metadata"]["name"] for one in objects if one["kind"] == "PodDisruptionBudget"}
    assert budgets == {"gateway", "worker"}


def test_nobody_reaches_anybody_but_as_it_is_said(objects: tuple[MAPPING, ...]) -> None:
    nobody = find(objects, "NetworkPolicy", "nobody")["spec"]
    assert nobody == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    ports = {name: {port["name"] for port in template["spec"]["containers"][0]["ports"]}
             for name, template in pods(objects)}  # fmt: skip
    for name in ("gateway", "worker", "redis"):
        spec = find(objects, "NetworkPolicy", name)["spec"]
        assert spec["podSelector"] == {"matchLabels": {"app.kubernetes.io/name": name}}
        for rule in spec["ingress"]:
            assert rule["from"] and {port["port"] for port in rule["ports"]} <= ports[name]
    outward = find(objects, "NetworkPolicy", "outward")["spec"]["egress"]
    reached = {port["port"] for rule in outward for port in rule["ports"]}
    assert reached == {53, 6379, 5432, 443, 4318}


def test_prometheus_finds_the_ports(objects: tuple[MAPPING, ...]) -> None:
    for name in ("gateway", "worker"):
        template = find(objects, "Deployment", name)["spec"]["template"]
        annotations = template["metadata"]["annotations"]
        assert int(annotations["prometheus.io/port"]) == template["spec"]["containers"][0]["ports"][0]["containerPort"]
        assert annotations["prometheus.io/path"] == "/metrics" and annotations["prometheus.io/scrape"] == "true"


def test_a_gpu_worker_has_one_gpu_and_a_cpu_worker_none() -> None:
    resources = {
        name: find(render(name), "Deployment", "worker")["spec"]["template"]["spec"]["containers"][0]["resources"]
        for name in OVERLAYS
    }
    assert resources["gpu"]["limits"]["nvidia.com/gpu"] == resources["gpu"]["requests"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in resources["cpu"]["limits"]
    assert environment_of(render("gpu"), "worker")["SLIDEREASON_DEVICE"] == "cuda"
    assert environment_of(render("cpu"), "worker")["SLIDEREASON_DEVICE"] == "cpu"
    # where GPUs are all taken, a new worker starts only when an old one has gone
    assert find(render("gpu"), "Deployment", "worker")["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0
