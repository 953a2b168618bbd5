"""What an operator may set. Read from the environment at the entry points of api and workers, and nowhere else."""

import os
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from foundry.errors import InvalidSettings

PREFIX = "FOUNDRY_"
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Settings(BaseSettings):
    """Every field is the environment variable FOUNDRY_<FIELD>; paths are made absolute."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True, use_attribute_docstrings=True
    )

    home: Annotated[Path, Field(validate_default=True)] = Path("~/.foundry")
    """Database, artifacts, work folders and keys of an installation on one machine."""
    database_url: str = Field(default_factory=lambda fields: f"sqlite:///{fields['home'] / 'foundry.db'}")
    """sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE; by default a SQLite file in `home`."""
    artifacts: Path = Field(default_factory=lambda fields: fields["home"] / "artifacts")
    """Content-addressed files of datasets and variants; by default `home`/artifacts."""
    artifacts_url: str | None = None
    """s3://BUCKET or s3://BUCKET/PREFIX, where datasets and variants are kept instead; credentials, region and endpoint
    come from the AWS_* variables. The folder of the artifacts still takes uploads, and copies that are in use."""
    artifact_cache_bytes: Annotated[int, Field(gt=0)] = 50_000_000_000
    """How much of `artifacts_url` is kept on this machine; what was used last stays."""
    downloads: Literal["proxied", "presigned"] = "proxied"
    """Whether files of variants pass through the API, or are fetched from `artifacts_url` by a link of ten minutes."""
    work: Path = Field(default_factory=lambda fields: fields["home"] / "work")
    """One folder for each unfinished job; by default `home`/work. Workers that share it resume each other's jobs."""
    signing_key: Path = Field(default_factory=lambda fields: fields["home"] / "signing-key.pem")
    """Ed25519 key that variants are signed with, made when it is missing; its public half lies beside it as .pub."""
    broker_url: str | None = None
    """redis://... when Celery feeds the workers; None when they poll the database."""
    teacher_roots: Annotated[tuple[Path, ...], NoDecode] = ()
    """Folders below which a job's teacher may lie; in the environment separated by `:` (`;` on Windows)."""
    hub_allowed: bool = True
    """Whether a teacher may be downloaded from the model hub."""
    lease_s: Seconds = 60.0
    """How long a silent worker keeps its job."""
    heartbeat_s: Seconds = 10.0
    """How often a worker renews its lease; at most a third of `lease_s`."""
    poll_s: Seconds = 1.0
    """How often an idle worker without a broker looks for a queued job."""
    stop_grace_s: Seconds = 30.0
    """How long a run may take to write a checkpoint before it is killed."""
    silence_s: Seconds = 3600.0
    """How long a run may say nothing before it counts as hung: it is killed and tried again from its checkpoint."""
    memory_bytes: Annotated[int, Field(gt=0)] | None = None
    """What this worker has for a run: jobs whose estimate needs more are left to other workers. None takes any job."""
    least_free_bytes: Annotated[int, Field(ge=0)] = 2**28
    """Disk that stays free: below it no run starts and /readyz says `storage_full`."""
    run_command: Annotated[tuple[str, ...], NoDecode] = ()
    """What starts a run, with its workspace added at the end, as in a shell; by default the engine under this Python.
    The place for a wrapper that limits memory or enters a container."""
    max_attempts: Annotated[int, Field(ge=1)] = 3
    """Attempts without progress, one after the other, after which a job fails."""
    max_upload_bytes: Annotated[int, Field(gt=0)] = 20_000_000_000
    """The largest file that is taken."""
    upload_silence_s: Seconds = 90.0
    """How long 64 KiB of an upload may take to arrive; a slower sender is cut off, for it holds a thread."""
    requests_per_minute: Annotated[int, Field(ge=1)] | None = 6000
    """What one key may ask in a minute; beyond it a request is answered with 429. None is no limit."""
    webhooks_private: bool = False
    """Whether webhooks may go to plain http and to addresses of private networks and of this machine."""
    cost_per_hour: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """What an hour of a worker costs, for estimates."""
    currency: str = "USD"
    """Of `cost_per_hour`."""
    serving_url: str | None = None
    """Where `foundry serve` answers, as http://127.0.0.1:8322; the console asks it what people try on a variant."""
    host: str = "127.0.0.1"
    """Where the API listens; 0.0.0.0 in a container."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8321
    """Of the API."""
    metrics_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Where a worker shows its own metrics to Prometheus, on `host` and without a key; None shows none."""

    @field_validator("home", "artifacts", "work", "signing_key")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        return path.expanduser().absolute()

    @field_validator("teacher_roots", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part for part in value.split(os.pathsep) if part) if isinstance(value, str) else value

    @field_validator("max_upload_bytes", mode="before")
    @classmethod
    def _whole(cls, value: Any) -> Any:
        return int(float(value)) if isinstance(value, str) and "e" in value.lower() else value

    @model_validator(mode="after")
    def _lease_outlives_heartbeats(self) -> Self:
        if self.lease_s < 3 * self.heartbeat_s:
            raise ValueError(
                f"lease_s ({self.lease_s:g}) must be at least three times heartbeat_s ({self.heartbeat_s:g}): "
                "one late heartbeat must not cost a healthy run its job"
            )
        return self

    @model_validator(mode="after")
    def _links_need_a_bucket(self) -> Self:
        if self.downloads == "presigned" and self.artifacts_url is None:
            raise ValueError("downloads=presigned needs artifacts_url: a folder has no links to give")
        return self

    @field_validator("run_command", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        return tuple(shlex.split(value)) if isinstance(value, str) else value

    @field_validator("teacher_roots")
    @classmethod
    def _real(cls, roots: tuple[Path, ...]) -> tuple[Path, ...]:
        return tuple(root.expanduser().resolve() for root in roots)

    @classmethod
    def from_env(cls) -> "Settings":
        """Read FOUNDRY_* from the environment; raise `InvalidSettings` that names the variable at fault."""
        try:
            return cls()
        except ValidationError as error:
            raise InvalidSettings(
                "; ".join(_problem(problem) for problem in error.errors(include_url=False))
            ) from error


def _problem(problem: Any) -> str:
    detail = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return str(detail)
    return f"{PREFIX}{str(problem['loc'][0]).upper()}={problem['input']!s:.80}: {detail}"
