"""Settings of serving."""

import ipaddress
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, SecretStr, field_validator

from distrib.config import Config
from distrib.scoring.policy import PolicyConfig, Precision

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class ServeConfig(Config):
    """Models, access and limits of a server."""

    host: str = "127.0.0.1"
    """Address that the HTTP proxies listen on; 0.0.0.0 in a pod."""

    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port that the HTTP proxies listen on."""

    models: dict[_Name, str] = Field(default_factory=dict)
    """Run folders by model name; by default the run itself as ``default``."""

    users: str | None = None
    """Prepared folder whose users can be requested by id; the run's own data by default."""

    titles: str | None = None
    """URL of a Parquet or CSV file with columns ``item`` and ``title``, shown with items."""

    token: Annotated[SecretStr, Field(min_length=1)] | None = None
    """Bearer token that requests need; by default the environment variable DISTRIB_TOKEN, if it is
    set."""

    allow_anonymous: bool = False
    """Whether a server without a token may listen on an address that other machines reach."""

    policy: PolicyConfig = Field(default_factory=PolicyConfig)
    """Default policy of requests; its files are read when a model is loaded."""

    replicas: PositiveInt | Annotated[list[PositiveInt], Field(min_length=2, max_length=2)] = 1
    """Replicas of each model: a number, or [min, max] to autoscale by queued requests."""

    http_workers: PositiveInt = 1
    """HTTP worker processes, which check requests and route them to replicas."""

    cpus_per_replica: PositiveFloat = 1.0
    """CPU cores, and threads, per replica; a fraction lets several models share a small machine."""

    gpus_per_replica: Annotated[float, Field(ge=0.0)] = 0.0
    """GPUs, or a fraction of one, per replica."""

    precision: Precision = "fp32"
    """As ``score.precision``."""

    batch_users: PositiveInt = 256
    """Most users of different requests in one batch."""

    batch_wait_ms: Annotated[float, Field(ge=0.0)] = 2.0
    """Time that a batch which is not full waits for more requests."""

    max_queue: PositiveInt = 256
    """Requests in flight per front, and queued per replica; more are refused (429). A good value is
    what a replica can answer within ``request_timeout_s``."""

    max_body_mb: PositiveFloat = 32.0
    """Largest request body in MB; larger ones are refused (413)."""

    max_held_mb: PositiveFloat = 128.0
    """Most MB of request bodies that a front holds at a time; more are refused (429)."""

    body_timeout_s: PositiveFloat = 20.0
    """Time limit for receiving a body, then 408."""

    max_k: PositiveInt = 1000
    """Longest list of a request."""

    max_history: PositiveInt = 100_000
    """Most interactions of one user in a request."""

    max_explained: PositiveInt = 1000
    """Most interactions of a history to explain; each costs one leave-one-out score."""

    max_users: PositiveInt = 5000
    """Most users of one Arrow stream; ``request_timeout_s`` applies to streams, too."""

    max_streams: PositiveInt = 4
    """Concurrent Arrow streams per replica; more are refused (429)."""

    request_timeout_s: PositiveFloat = 30.0
    """Time limit of a request, then 503."""

    reload_s: PositiveFloat = 10.0
    """Seconds between checks of a replica for a newer bundle of its run."""

    cached_shards: NonNegativeInt = 4
    """Shards of stored users that a replica keeps in memory."""

    @property
    def is_exposed(self) -> bool:
        """Whether other machines reach the server."""
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() != "localhost"

    @field_validator("replicas")
    @classmethod
    def _from_and_to(cls, value: int | list[int]) -> int | list[int]:
        if isinstance(value, list) and value[0] > value[1]:
            raise ValueError("expected [min, max] with min <= max")
        return value
