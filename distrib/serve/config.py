"""Settings of serving."""

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, SecretStr, field_validator

from distrib.config import Config
from distrib.score.policy import PolicyConfig, Precision

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class ServeConfig(Config):
    """Which models are served, to whom, and within which limits."""

    host: str = "127.0.0.1"
    """Address that the HTTP proxies listen on; 0.0.0.0 in a pod."""

    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port that the HTTP proxies listen on."""

    models: dict[_Name, str] = Field(default_factory=dict)
    """Run folders by the names that requests use; the run itself as ``default`` when empty."""

    users: str | None = None
    """Prepared folder whose users can be asked for by id; the run's own data when not given."""

    titles: str | None = None
    """URL of a Parquet or CSV file with columns ``item`` and ``title``, for people to read."""

    token: Annotated[SecretStr, Field(min_length=1)] | None = None
    """What requests must bear; from the environment by ``token = "${DISTRIB_TOKEN}"``. Anyone may
    ask when not given."""

    policy: PolicyConfig = Field(default_factory=PolicyConfig)
    """What holds where a request says nothing else; its files are read when a model is loaded."""

    replicas: PositiveInt | Annotated[list[PositiveInt], Field(min_length=2, max_length=2)] = 1
    """Scorers of each model: a number, or from and to by the requests that wait."""

    fronts: PositiveInt = 1
    """Processes that check requests and hand them to scorers."""

    cpus_per_replica: PositiveFloat = 1.0
    """Cores, and threads, of a scorer; a share of one lets several models into a small machine."""

    gpus_per_replica: Annotated[float, Field(ge=0.0)] = 0.0
    """GPUs, or the share of one, of a scorer."""

    precision: Precision = "fp32"
    """As ``score.precision``."""

    batch_users: PositiveInt = 256
    """Users of different requests that are scored at once, at most."""

    batch_wait_ms: Annotated[float, Field(ge=0.0)] = 2.0
    """How long the first of a batch waits for others."""

    max_waiting: PositiveInt = 256
    """Requests under way at a front, and waiting at a scorer; further ones are told to come again
    (429). What a scorer can answer in the time that a request may take is a good choice."""

    max_body_mb: PositiveFloat = 64.0
    """Largest body of a request; above it 413."""

    max_k: PositiveInt = 1000
    """Longest list that may be asked for."""

    max_history: PositiveInt = 100_000
    """Interactions of one user in a request."""

    max_explained: PositiveInt = 1000
    """Interactions of a history that is explained: each is left out in turn."""

    max_users: PositiveInt = 5000
    """Users of one Arrow stream; it must be answered in the time of a request, too."""

    max_streams: PositiveInt = 4
    """Arrow streams under way at a scorer; further ones are told to come again (429)."""

    request_timeout_s: PositiveFloat = 30.0
    """After it a request is given up (503)."""

    reload_s: PositiveFloat = 10.0
    """How often a scorer looks for a newer bundle of its run."""

    cached_shards: NonNegativeInt = 4
    """Shards of stored users that a scorer keeps in memory."""

    @field_validator("replicas")
    @classmethod
    def _from_and_to(cls, value: int | list[int]) -> int | list[int]:
        if isinstance(value, list) and value[0] > value[1]:
            raise ValueError("from must not be above to")
        return value
