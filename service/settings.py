"""The environment, read once into one frozen Settings."""

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

GIB = 1 << 30


def default_data_folder() -> Path:
    """`$XDG_DATA_HOME/slidereason`, or its usual place under the home folder."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "slidereason"


class Settings(BaseSettings):
    """Every option of the service; each is also `SLIDEREASON_<NAME>` in the environment."""

    model_config = SettingsConfigDict(env_prefix="SLIDEREASON_", frozen=True, extra="ignore")

    host: str = "127.0.0.1"
    """Address to listen on; only loopback, until there is authentication."""
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
    """Most jobs waiting or running at once; more are answered with 429."""
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
    worker_heard_s: float = Field(60.0, gt=0)
    """A worker silent for longer counts as gone."""

    @field_validator("slides", mode="before")
    @classmethod
    def _split_folders(cls, value: Any) -> Any:
        return tuple(part for part in value.split(os.pathsep) if part) if isinstance(value, str) else value

    @field_validator("cors_origins", "allowed_hosts", mode="before")
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

    @model_validator(mode="after")
    def _loopback_only(self) -> "Settings":
        if not is_loopback(self.host):
            raise ValueError(
                f"host {self.host!r} is not loopback, and this version has no authentication yet: anyone who reaches "
                "the port could read slides. Bind to 127.0.0.1, ::1 or localhost, and put an authenticating proxy or "
                "an SSH tunnel in front to reach it from elsewhere"
            )
        return self


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
