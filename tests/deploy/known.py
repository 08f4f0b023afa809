"""What files of the deployment are held against: settings that the code reads, metrics that it tells."""

import re
import tempfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"

OTHERS = re.compile(r"AWS_[A-Z_]+|OTEL_[A-Z_]+|OMP_NUM_THREADS")
"""Settings of what we use: the S3 client, the tracer, the network's threads."""

PLACEHOLDERS = {
    "SLIDEREASON_DATABASE_URL": "postgresql+psycopg://name@postgres/slidereason",
    "AWS_ACCESS_KEY_ID": "name",
    "AWS_SECRET_ACCESS_KEY": "word",
    "SLIDEREASON_WEBHOOK_SECRET": "whsec_" + "A" * 32,
    "SLIDEREASON_DICOMWEB_TOKEN": "t0ken",
}
"""What the Secret of deploy/secret.env.example holds."""

WORKER_PLACEHOLDERS = {"SLIDEREASON_FHIR_TOKEN": "t0ken"}
"""What the Secret of deploy/worker-secret.env.example holds, which workers alone read."""

COMPOSE_ONLY = {"SLIDEREASON_VERSION"}
"""Variables of docker-compose.yml itself: the tag of the images."""

FILES = ("docker-compose.yml", "docker-compose.gpu.yml", "docker-compose.deliver.yml")
"""Of Compose; the later ones go on top of the first."""


def gateway_settings() -> set[str]:
    """Variables that a gateway reads."""
    from service.settings import Settings

    return {f"SLIDEREASON_{name.upper()}" for name in Settings.model_fields}


def worker_settings() -> set[str]:
    """Variables that a worker reads."""
    from worker.worker_main import ALIASES, WorkerSettings

    fields = {name for name, kind in WorkerSettings.__annotations__.items() if kind in (str, int, float)}
    return {f"SLIDEREASON_{name.upper()}" for name in fields} | set(ALIASES.values())


def delivery_settings() -> tuple[set[str], set[str]]:
    """Variables about deliveries: (those that a gateway reads, those that a worker does)."""
    from worker.worker_main import DELIVERING

    of_worker = {f"SLIDEREASON_{name.upper()}" for name in DELIVERING}
    return of_worker & gateway_settings(), of_worker


def secret_settings() -> set[str]:
    """Variables that are shown nowhere."""
    from dataclasses import fields

    from worker.worker_main import WorkerSettings

    return {f"SLIDEREASON_{field.name.upper()}" for field in fields(WorkerSettings) if not field.repr}


def named_in_code() -> set[str]:
    """Every variable of ours that any Python file outside the tests names, and every setting."""
    text = "".join(
        path.read_text(encoding="utf-8")
        for package in ("service", "worker", "model", "deploy")
        for path in (REPOSITORY / package).rglob("*.py")
    )
    return set(re.findall(r"\bSLIDEREASON_[A-Z0-9_]+", text)) | gateway_settings() | worker_settings()


def unknown(environment: Mapping[str, str], settings: set[str]) -> list[str]:
    """Variables that nobody reads: misspelt, or of a version that is gone."""
    return sorted(name for name in environment if name not in settings and not OTHERS.fullmatch(name))


def read_worker(environment: Mapping[str, str]):
    """The settings of a worker in this environment; refuses what a worker would refuse."""
    from worker.worker_main import WorkerSettings

    return WorkerSettings.from_environment(environment)


def read_gateway(environment: Mapping[str, str], monkeypatch, slides: Path):
    """The settings of a gateway in this environment, whose slides lie in `slides`; refuses what a gateway would."""
    from service.settings import read_settings

    for name in gateway_settings():
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLIDEREASON_SLIDES", str(slides))
    return read_settings()


def read_env_file(path: Path) -> dict[str, str]:
    """NAME=value lines; comments and empty lines are left out."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def metric_names() -> set[str]:
    """Names of the series that gateways and workers tell, as Prometheus stores them."""
    from service.metrics import LedgerCollector, Metrics
    from worker.ledger import Ledger
    from worker.metrics import REGISTRY, GpuMemory

    with tempfile.TemporaryDirectory() as folder, closing(Ledger(f"sqlite:///{folder}/ledger.sqlite")) as ledger:
        gateway = Metrics(ledger, "tiny", 60.0, streams=lambda: 0)
        families = [*gateway.registry.collect(), *LedgerCollector(ledger, "tiny", 60.0).collect()]
    families += [*REGISTRY.collect(), *GpuMemory().collect()]
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
    return {family.name + suffix for family in families for suffix in suffixes.get(family.type, ())}


def metrics_in(expression: str) -> set[str]:
    """Names of our metrics in a PromQL expression."""
    return set(re.findall(r"\bslidereason_\w+", expression))
