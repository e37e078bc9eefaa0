"""Ray Serve deployments: HTTP fronts, one scorer deployment per model, and their metrics."""

import asyncio
import socket
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.schema import LoggingConfig
from ray.util.metrics import Counter, Gauge, Histogram

from distrib.cluster.resources import is_fixed, present
from distrib.config import JsonObject
from distrib.data.dataset import Dataset
from distrib.errors import ConfigError
from distrib.events import emit
from distrib.serve.app import make_app
from distrib.serve.config import ServeConfig
from distrib.serve.model_host import ModelHost
from distrib.serve.replica import Replica
from distrib.serve.schemas import Answer

APP = "distrib"
_SECONDS = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0]
_USERS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
_FRONT_CPUS = 0.1
_RETRY_S = 0.1
_SHUTDOWN_TRIES = 50
_HEALTH_S = 5.0


class ServePlan(NamedTuple):
    """Settings of a server with defaults resolved."""

    models: Mapping[str, str]
    """Run folders by model name."""

    users: str
    """Prepared folder of the users that can be requested by id."""

    config: ServeConfig

    @classmethod
    def of(cls, run: str, prepared: str, config: ServeConfig) -> "ServePlan":
        """Resolve the defaults: the run itself, and its own data."""
        return cls(config.models or {"default": run}, config.users or prepared, config)


def preflight(run: str, prepared: str, config: ServeConfig) -> None:
    """Load every model once, so that errors surface before anything is deployed.

    Args:
        run: Run folder, used if the settings name no models.
        prepared: The run's prepared data.
        config: Settings of the server.

    Raises:
        CheckpointError: A model has no bundle, or it is damaged.
        ConfigError: The policy does not fit a model, the port is taken, or anyone could use the
            server from other machines, without a token.
        DataError: A configured file is absent or not a table.
    """
    plan = ServePlan.of(run, prepared, config)
    _require_token(config)
    _require_port(config)
    if config.users:
        Dataset.open(config.users)
    for name, folder in plan.models.items():
        ModelHost(name, folder, plan.users, config)


def _require_token(config: ServeConfig) -> None:
    if config.is_exposed and config.token is None and not config.allow_anonymous:
        raise ConfigError(
            f"serve.host = {config.host!r}: other machines reach the server, but it has no token; "
            "set the environment variable DISTRIB_TOKEN or serve.token, or serve.allow_anonymous = "
            "true"
        )


def _require_port(config: ServeConfig) -> None:
    """Refuse a port that is in use; two servers would share its requests."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((config.host, config.port))
        except OSError as error:
            raise ConfigError(
                f"serve.port = {config.port} on {config.host}: cannot bind ({error.strerror}); set "
                "serve.port to a free port"
            ) from error


def _require_alone() -> None:
    """Refuse a cluster where Ray Serve runs already, since another job owns it."""
    for _ in range(_SHUTDOWN_TRIES):  # a previous shutdown may still be in progress
        try:
            ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
        except ValueError:
            return
        time.sleep(_RETRY_S)
    raise ConfigError(
        "serve: Ray Serve runs on this cluster already; end the job that started it, or submit "
        "this one to another cluster"
    )


def _require_room(plan: ServePlan) -> None:
    """Refuse a plan that exceeds a fixed cluster; an autoscaling one may still grow."""
    config = plan.config
    least = config.replicas if isinstance(config.replicas, int) else config.replicas[0]
    wanted = {
        "CPU": len(plan.models) * least * config.cpus_per_replica
        + _FRONT_CPUS * config.http_workers,
        "GPU": len(plan.models) * least * config.gpus_per_replica,
    }
    have = present()
    for kind, count in wanted.items():
        if count <= have.get(kind, 0.0):
            continue
        detail = (
            f"{len(plan.models)} model(s) with {least} replica(s) and {config.http_workers} HTTP "
            f"worker(s) take {count:g} {kind}, but the cluster has {have.get(kind, 0.0):g}"
        )
        if is_fixed():
            raise ConfigError(f"serve: {detail}; lower serve.cpus_per_replica (may be a fraction)")
        emit("waiting_for_room", detail=detail)


def application(plan: ServePlan) -> serve.Application:
    """Build the Serve application: one deployment of fronts, and one of scorers per model.

    Args:
        plan: Settings of the server.

    Returns:
        The application.

    Raises:
        ConfigError: Anyone could use it from other machines, without a token.
    """
    config = plan.config
    _require_token(config)
    scorers = [
        _scorers(config).options(name=_scorer_name(name)).bind(name, run, plan.users, config)
        for name, run in plan.models.items()
    ]
    names = tuple(plan.models)

    def built() -> FastAPI:  # runs on the replica, where handles are available
        return make_app(_RayRouter(names), config, _RayHttpMetrics())

    fronts = serve.deployment(
        name="front",
        num_replicas=config.http_workers,
        max_ongoing_requests=config.max_queue,
        max_queued_requests=max(1, config.max_queue // 4),  # queued without timeout
        graceful_shutdown_timeout_s=config.request_timeout_s,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        ray_actor_options={"num_cpus": _FRONT_CPUS},
        health_check_period_s=_HEALTH_S,
    )(serve.ingress(built)(_HttpServer))
    return fronts.bind(*scorers)


def start(plan: ServePlan) -> str:
    """Deploy, and return the address once all models answer.

    Args:
        plan: The resolved settings.

    Returns:
        URL of the server.

    Raises:
        ConfigError: The port is taken, Ray Serve runs already, or the cluster is too small.
    """
    config = plan.config
    _require_alone()
    _require_port(config)
    _require_room(plan)
    try:
        quiet = LoggingConfig(log_level="ERROR", encoding="JSON", enable_access_log=False)
        http = {"host": config.host, "port": config.port}
        serve.start(http_options=http, logging_config=quiet)
        serve.run(application(plan), name=APP, route_prefix="/", logging_config=quiet)
    except RuntimeError as error:
        serve.shutdown()
        raise ConfigError(f"serve: could not be deployed ({error})") from error
    return f"http://{config.host}:{config.port}"


def run_until_stopped(run: str, prepared: str, config: ServeConfig) -> JsonObject:
    """Serve until an exception in the main thread stops the process.

    Args:
        run: Run folder, used if the settings name no models.
        prepared: The run's prepared data.
        config: Settings of the server.

    Returns:
        Never.
    """
    plan = ServePlan.of(run, prepared, config)
    url = start(plan)
    emit("serving", url=url, models=sorted(plan.models), page=f"{url}/", docs=f"{url}/docs")
    try:
        while True:
            time.sleep(1.0)
    finally:
        serve.delete(APP)  # waits for requests in flight
        serve.shutdown()


def _scorer_name(model: str) -> str:
    return f"scorer-{model}"


def _scorers(config: ServeConfig) -> Any:
    options: JsonObject = {"num_replicas": config.replicas}
    if isinstance(config.replicas, list):
        low, high = config.replicas
        target = max(1, config.batch_users // 2)
        options = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=low, max_replicas=high, target_ongoing_requests=target
            )
        }
    resources = {"num_cpus": config.cpus_per_replica, "num_gpus": config.gpus_per_replica}
    return serve.deployment(
        max_ongoing_requests=config.max_queue + config.batch_users,
        max_queued_requests=config.max_queue,
        ray_actor_options=resources,
        health_check_period_s=_HEALTH_S,
        graceful_shutdown_timeout_s=config.request_timeout_s,
        **options,
    )(_Scorer)


class _Scorer:
    """One replica of a model."""

    def __init__(self, name: str, run: str, prepared: str, config: ServeConfig) -> None:
        self._reload_s = config.reload_s
        self._replica = Replica(
            ModelHost(name, run, prepared, config), config, _RayModelMetrics(name)
        )
        self._watch: asyncio.Task[None] | None = None

    async def submit(self, what: str, *arguments: Any) -> tuple[int, Any]:
        """See `Replica.submit`."""
        self._begin_to_watch()
        return tuple(await self._replica.submit(what, *arguments))

    async def check_health(self) -> None:
        """Health check of Serve: the scoring thread must respond in time."""
        self._begin_to_watch()
        await self._replica.beat()

    def _begin_to_watch(self) -> None:
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._replica.watch(self._reload_s))


class _HttpServer:
    """Ingress of the application; binding the scorers as arguments deploys them with it."""

    def __init__(self, *_scorers: Any) -> None:
        pass


class _RayRouter:
    """Routes requests to scorers by Serve handles; requests are idempotent, so they are retried."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self._handles = {
            name: serve.get_deployment_handle(_scorer_name(name), app_name=APP) for name in names
        }

    async def submit(self, model: str, what: str, *arguments: Any) -> Answer:
        """Retry until a scorer answers; the caller sets the time limit."""
        while True:
            try:
                return Answer(*await self._handles[model].submit.remote(what, *arguments))
            except BackPressureError:
                return Answer(429, {"detail": "too many queued requests; retry later"})
            except (RayActorError, DeploymentUnavailableError):
                await asyncio.sleep(_RETRY_S)


class _RayHttpMetrics:
    def __init__(self) -> None:
        tags = ("route", "status")
        self._requests = Counter("distrib_serve_requests", "Requests answered.", tags)
        self._latency = Histogram(
            "distrib_serve_latency_seconds", "Request latency.", _SECONDS, ("route",)
        )

    def reached(self, route: str, status: int, elapsed_s: float) -> None:
        """Record an answered request."""
        self._requests.inc(1, {"route": route, "status": str(status)})
        self._latency.observe(elapsed_s, {"route": route})


class _RayModelMetrics:
    def __init__(self, model: str) -> None:
        self._tags: Mapping[str, str] = {"model": model}
        names = ("model",)
        self._batches = Histogram("distrib_serve_batch_users", "Users per batch.", _USERS, names)
        self._waiting = Gauge("distrib_serve_waiting", "Queued requests.", names)
        self._unknown = Counter("distrib_serve_unknown_items", "Unknown items in requests.", names)
        self._reloads = Counter(
            "distrib_serve_reloads", "Reloads of newer bundles, by success.", ("model", "well")
        )

    def batched(self, num_users: int) -> None:
        """Record the size of a batch that starts."""
        self._batches.observe(num_users, dict(self._tags))

    def waiting(self, count: int) -> None:
        """Record the number of queued requests."""
        self._waiting.set(count, dict(self._tags))

    def unknown(self, count: int) -> None:
        """Count items in requests that the model does not know."""
        if count:
            self._unknown.inc(count, dict(self._tags))

    def reloaded(self, *, is_well: bool) -> None:
        """Count a reload of a newer bundle, successful or not."""
        self._reloads.inc(1, {**self._tags, "well": str(is_well).lower()})
