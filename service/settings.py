"""The environment, read once into one frozen Settings."""

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.sources import Sources, read_place
from worker.deliveries_webhook import read_secret
from worker.destinations import read_callbacks, read_endpoint
from worker.outbound import Outbound

GIB = 1 << 30


def default_data_folder() -> Path:
    """`$XDG_DATA_HOME/slidereason`, or its usual place under the home folder."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "slidereason"


class Settings(BaseSettings):
    """Every option of the service; each is also `SLIDEREASON_<NAME>` in the environment."""

    model_config = SettingsConfigDict(env_prefix="SLIDEREASON_", frozen=True, extra="ignore")

    host: str = "127.0.0.1"
    """Address to listen on; only loopback, unless an authenticating proxy stands in front (`behind_proxy`)."""
    port: int = Field(8000, ge=0, le=65535)
    """TCP port; 0 lets the system choose."""
    slides: Annotated[tuple[Path, ...], NoDecode] = ()
    """Folders whose slides may be referred to; in the environment separated like PATH."""
    data: Path = Field(default_factory=default_data_folder)
    """Where ledger, uploads and results are kept."""
    model: str = "tiny"
    """Name of the segmenter the embedded worker runs and jobs use by default."""
    threads: int = Field(2, ge=1, le=64)
    """Block threads of the embedded worker."""
    broker_url: str | None = None
    """Celery broker; None starts the embedded one."""
    database_url: str | None = None
    """SQLAlchemy URL of the ledger; None is SQLite in `data`."""
    artifacts: str | None = None
    """Folder of results; None is `artifacts` in `data`."""
    max_body_bytes: int = Field(4 << 20, ge=1)
    """Largest JSON body."""
    max_upload_bytes: int = Field(8 * GIB, ge=1)
    """Largest uploaded slide."""
    max_query_chars: int = Field(1000, ge=1)
    """Longest query."""
    max_queries: int = Field(16, ge=1)
    """Most queries of one job."""
    max_roi_vertices: int = Field(10_000, ge=4)
    """Most polygon vertices of one roi, or of an exemplar's outline."""
    max_tiles: int = Field(4_000_000, ge=1)
    """Most tiles of one job's grid, before tissue and roi thin it."""
    max_open_jobs: int = Field(100, ge=1)
    """Most jobs waiting or running at once; more are answered with 429. A cluster sets this higher, e.g. 10000."""
    max_open_jobs_per_tenant: int | None = Field(None, ge=1)
    """The same of one tenant; None is no limit of its own."""
    max_event_streams: int = Field(500, ge=1)
    """Most event streams open at once at this process; more are answered with 503."""
    slide_timeout_s: float = Field(30.0, gt=0)
    """Longest a slide may take to be opened in its child process."""
    slide_memory_bytes: int = Field(3 * GIB, ge=1 << 28)
    """Most memory the child process that opens a slide may use."""
    slide_checks: int = Field(2, ge=1)
    """Slides opened at once."""
    slide_names: bool = False
    """Show file names in the slide catalogue; off, because file names often carry patient or case numbers."""
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ("*",)
    """Origins whose pages may read overlays and regions (by a job's unguessable id); comma-separated."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Further `Host` names to answer to, beside the loopback ones; comma-separated."""
    behind_proxy: bool = False
    """An authenticating proxy stands in front and alone can reach this process: permits a host that is not loopback."""
    tenant_header: str | None = Field(None, pattern=r"^[A-Za-z0-9-]{1,64}$")
    """Header in which the proxy says whose request it is; None: everybody is one tenant. Clients must not set it."""
    shutdown_delay_s: float = Field(0.0, ge=0, le=300)
    """After SIGTERM the process is not ready but still answers for so long, so that load balancers look elsewhere."""
    log_format: Literal["text", "json"] = "text"
    """Log lines as text, or as JSON objects."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"
    """Log lines below it are left out."""
    worker_heard_s: float = Field(60.0, gt=0)
    """A worker silent for longer counts as gone."""
    callback_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Hosts that jobs may name in `callback_url`, by https: names, `*.name` for all below, `*`; comma-separated."""
    callback_inside_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Hosts (`host` or `host:port`) of the own network that they may name too, by http or https; comma-separated."""
    webhook_secret: SecretStr | None = None
    """What webhooks are signed with, `whsec_` and 24 to 64 bytes in base64; None: no job may name a `callback_url`."""
    dicomweb_url: str = ""
    """Root of the archive that results may be pushed to by STOW-RS; empty: none."""
    dicomweb_token: SecretStr | None = None
    """Bearer token for that archive, sent when a series is fetched from it; None: none."""
    fhir_url: str = ""
    """Base address of the FHIR server that results may be pushed to; empty: none."""

    slide_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Hosts that slides may be fetched from by https: names, `*.name` for all below, `*`; comma-separated."""
    slide_inside_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Hosts (`host` or `host:port`) of the own network to fetch from too, by http or https; comma-separated."""
    slide_places: Annotated[tuple[str, ...], NoDecode] = ()
    """`s3://bucket/prefix` below which slides may be fetched; comma-separated."""
    fetches: int = Field(2, ge=1, le=64)
    """Slides fetched at once by this process."""
    max_fetch_bytes: int | None = Field(None, ge=1)
    """Largest fetched slide; None is as `max_upload_bytes`."""
    fetch_stall_s: float = Field(60.0, gt=0)
    """A fetch that brings less than 64 KiB in so long is given up."""
    fetched_days: float = Field(7.0, ge=1)
    """A fetched slide that nobody asked for in so long, and no open job uses, makes room for others."""

    @field_validator("slides", mode="before")
    @classmethod
    def _split_folders(cls, value: Any) -> Any:
        return tuple(part for part in value.split(os.pathsep) if part) if isinstance(value, str) else value

    @field_validator(
        "cors_origins", "allowed_hosts", "callback_hosts", "callback_inside_hosts", "slide_hosts",
        "slide_inside_hosts", "slide_places", mode="before",
    )  # fmt: skip
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("slides")
    @classmethod
    def _folders_exist(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        missing = [str(path) for path in value if not path.is_dir()]
        if missing:
            raise ValueError(f"not a folder: {', '.join(missing)}; give folders that exist")
        return tuple(path.resolve(strict=True) for path in value)

    @field_validator("data")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().resolve()

    @field_validator("webhook_secret")
    @classmethod
    def _is_a_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None or not value.get_secret_value():
            return None
        read_secret(value.get_secret_value())
        return value

    @field_validator("dicomweb_url", "fhir_url")
    @classmethod
    def _is_an_address(cls, value: str, about: ValidationInfo) -> str:
        read_endpoint(value, "", str(about.field_name))
        return value

    @field_validator("slide_places")
    @classmethod
    def _are_places(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for place in value:
            read_place(place)
        return value

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _nobody_reaches_it_unasked(self) -> "Settings":
        if self.behind_proxy and self.tenant_header is None and not self.allowed_hosts:
            raise ValueError(
                "behind_proxy says that an authenticating proxy stands in front; also set tenant_header (the header in "
                "which it says whose request it is) or allowed_hosts (the names it asks for)"
            )
        if not is_loopback(self.host) and not self.behind_proxy:
            raise ValueError(
                f"host {self.host!r} is not loopback, and this version has no authentication yet: anyone who reaches "
                "the port could read slides. Bind to 127.0.0.1, ::1 or localhost, and put an authenticating proxy or "
                "an SSH tunnel in front to reach it from elsewhere; where the proxy is another host or container that "
                "alone can reach this port, set behind_proxy"
            )
        return self

    @property
    def ledger_url(self) -> str:
        """SQLAlchemy URL of the ledger."""
        return self.database_url or f"sqlite:///{self.data / 'ledger.sqlite'}"

    @property
    def callbacks(self) -> Outbound:
        """Which addresses clients may have called."""
        return read_callbacks(self.callback_hosts, self.callback_inside_hosts)

    @property
    def sources(self) -> Sources:
        """Where slides may be fetched from."""
        token = "" if self.dicomweb_token is None else self.dicomweb_token.get_secret_value()
        return Sources(
            outbound=read_callbacks(self.slide_hosts, self.slide_inside_hosts),
            places=tuple(map(read_place, self.slide_places)),
            archive=read_endpoint(self.dicomweb_url, token, "dicomweb_url"),
        )

    @property
    def of_deliveries(self) -> dict[str, str]:
        """What the embedded worker must know as the gateway does, by the names of its settings."""
        return {
            "CALLBACK_HOSTS": ",".join(self.callback_hosts),
            "CALLBACK_INSIDE_HOSTS": ",".join(self.callback_inside_hosts),
            "WEBHOOK_SECRET": "" if self.webhook_secret is None else self.webhook_secret.get_secret_value(),
            "DICOMWEB_URL": self.dicomweb_url,
            "FHIR_URL": self.fhir_url,
        }

    @property
    def artifacts_place(self) -> str:
        """Folder or `s3://` URL of results."""
        return self.artifacts or str(self.data / "artifacts")


def is_loopback(host: str) -> bool:
    """Whether an address to bind to can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def read_settings(**given: Any) -> Settings:
    """Settings from the environment, with `given` options (None means not given) above it.

    Raises:
        ValueError: one line per option that is not accepted, saying what would be.
    """
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False, include_input=False):
            name = ".".join(str(part) for part in problem["loc"])
            text = problem["msg"].removeprefix("Value error, ")
            lines.append(f"{name}: {text}" if name else text)
        raise ValueError("\n".join(lines)) from None
