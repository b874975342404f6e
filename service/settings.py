"""Settings: where the service keeps its data and whom it talks to. Read once, by whoever starts the service."""

from __future__ import annotations

import os
import sys
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated

from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from data_pipeline.storage.addresses import is_remote, url_parts
from service.access.options import AccessOptions
from service.control.failpoints import parse_failpoint


class Settings(AccessOptions):
    """All settings of the service; each is also read from the environment, e.g. `HUSH_DATABASE_URL`."""

    model_config = SettingsConfigDict(
        env_prefix="HUSH_", frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True
    )

    home: Path = Path("~/.hush")
    """Folder of everything that has no place of its own."""
    database_url: str | None = None
    """SQLAlchemy URL of the database; unset: SQLite, `<home>/hush.db`."""
    storage: Path | None = None
    """Folder of all attempts, on a disk that the service and every worker share; unset: `<home>/storage`."""
    public_url: str = "http://127.0.0.1:8000"
    """Address of this service as the workers reach it, without a slash at the end."""
    ray_address: str = "http://127.0.0.1:8265"
    """Address of Ray's dashboard, which serves the Ray Jobs API."""
    ray_token: SecretStr | None = None
    """Token of a Ray cluster that runs with RAY_AUTH_MODE=token."""
    mlflow_uri: str | None = None
    """Address of the MLflow tracking server; unset: runs are not copied to MLflow."""
    allowed_roots: Annotated[tuple[Path, ...], NoDecode] | None = None
    """Folders a job may read data and weights from, separated by `:` in the environment; symlinks are followed before
    the comparison. Unset: the service's home, the user's home, and the folder the service was started in."""
    allowed_urls: Annotated[tuple[str, ...], NoDecode] = ()
    """Addresses a job may read data from, e.g. `s3://bucket/sets https://data.example.org`, between spaces or commas;
    each allows all that lies below it, and wherever its server redirects to. Unset: none, as service and workers ask
    with credentials of their own."""
    python: Path = Path(sys.executable)
    """Python interpreter on the cluster that runs the drivers; Hush must be installed in it."""
    warm_workers: bool = False
    """Keep a driver ready whose workers have imported everything, so that a job on CPUs starts in a second; takes about
    a gigabyte of memory. Only for a machine that this service has to itself; `hush serve` does it."""
    max_body_bytes: int = Field(default=8 << 20, ge=1024)
    """Requests with a larger body are refused."""
    reconcile_interval_s: float = Field(default=0.5, gt=0)
    """Seconds between two looks at the cluster, when nothing asks for an earlier one."""
    lease_ttl_s: float = Field(default=15, gt=0)
    """Seconds after which another process on the same database looks after the jobs, if the one that does is killed."""
    cancel_grace_s: float = Field(default=3, ge=0)
    """Seconds a job that was asked to stop has to begin its last checkpoint before its driver is killed."""
    cancel_checkpoint_s: float = Field(default=120, ge=0)
    """Seconds it has if its heartbeats say that it is on its way to a checkpoint: evaluating, recording, finishing."""
    lost_after_s: float = Field(default=60, gt=0)
    """An attempt that trained and is silent for this many seconds is given up, whether Ray can be asked or not."""
    start_timeout_s: float = Field(default=900, gt=0)
    """An attempt whose driver runs, but that has not begun to train after this many seconds, is given up."""
    recovery_timeout_s: float = Field(default=3600, gt=0)
    """A job that recovers is given up if the cluster has been too small for it, or silent, for this many seconds."""
    retry_backoff_s: float = Field(default=2, ge=0)
    """Seconds before the second attempt of a job; each further one waits twice as long as the one before."""
    retry_backoff_max_s: float = Field(default=300, ge=0)
    """No attempt waits longer than this many seconds for the one before."""
    max_running_jobs_per_tenant: int | None = Field(default=None, ge=1)
    """Jobs of one tenant that run at a time, where the tenant has no limit of its own; unset: as many as fit."""
    max_workers_per_tenant: int | None = Field(default=None, ge=1)
    """Workers of all running jobs of one tenant, where the tenant has no limit of its own; unset: as many as fit."""
    linger_s: float = Field(default=60, gt=0)
    """Seconds a driver may live on after its result is complete before it is killed."""
    otel_endpoint: str | None = Field(
        default=None,
        validation_alias=AliasChoices("otel_endpoint", "HUSH_OTEL_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
    )
    """Base address of an OpenTelemetry collector that takes OTLP over HTTP, e.g. `http://collector:4318`; takes the
    extra `hush[otel]`. Unset: nothing is traced. `OTEL_EXPORTER_OTLP_ENDPOINT` is read, too."""
    webhook_allow_http: bool = False
    """Whether webhooks may be sent without TLS."""
    webhook_allowed_networks: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = ()
    """Networks that webhooks may be sent to although they are not public, e.g. `10.1.0.0/16 fd00::/8`, between spaces
    or commas. Unset: none, so that nobody has the service call what only it can reach."""
    webhook_timeout_s: float = Field(default=10, gt=0, le=30)
    """Seconds a webhook's server has for its answer."""
    failpoint: str | None = None
    """For tests: where this process is to be killed, as `name` or, at the n-th passing, `name:n`; see
    service.control.failpoints."""

    @field_validator("failpoint", mode="after")
    @classmethod
    def _known_failpoint(cls, failpoint: str | None) -> str | None:
        if failpoint is not None:
            parse_failpoint(failpoint)
        return failpoint

    @field_validator("home", mode="after")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        return home.expanduser().absolute()

    @field_validator("storage", mode="after")
    @classmethod
    def _absolute_storage(cls, storage: Path | None) -> Path | None:
        return None if storage is None else storage.expanduser().absolute()

    @field_validator("allowed_roots", mode="before")
    @classmethod
    def _split_roots(cls, roots: object) -> object:
        return tuple(filter(None, roots.split(os.pathsep))) if isinstance(roots, str) else roots

    @field_validator("allowed_urls", "webhook_allowed_networks", mode="before")
    @classmethod
    def _split(cls, listed: object) -> object:
        return tuple(listed.replace(",", " ").split()) if isinstance(listed, str) else listed

    @field_validator("allowed_urls", mode="after")
    @classmethod
    def _addresses(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            if not is_remote(url):
                raise ValueError(f"{url!r} is no address; a folder goes into HUSH_ALLOWED_ROOTS")
            url_parts(url)
        return urls

    @field_validator("public_url", "ray_address", "mlflow_uri", "otel_endpoint", mode="after")
    @classmethod
    def _url(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(("http://", "https://")):
            raise ValueError(f"{url!r} is not an address; it must start with http:// or https://")
        return None if url is None else url.rstrip("/")

    @property
    def database(self) -> str:
        """SQLAlchemy URL of the database."""
        return self.database_url or f"sqlite:///{self.home / 'hush.db'}"

    @property
    def storage_dir(self) -> Path:
        """Folder of all attempts."""
        return self.storage or self.home / "storage"

    @property
    def roots(self) -> tuple[Path, ...]:
        """Folders a job may read from, with symlinks resolved."""
        roots = self.allowed_roots or (self.home, Path.home(), Path.cwd())
        return tuple(dict.fromkeys(root.expanduser().resolve() for root in roots))
