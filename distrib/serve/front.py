"""The HTTP application: who may ask, how much, and what is told of what went wrong."""

import hmac
import json
import math
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Protocol

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException

from distrib import __version__
from distrib.events import emit
from distrib.serve import routes
from distrib.serve.config import ServeConfig
from distrib.serve.routes import Asking, Desks

_REQUEST_ID = re.compile(r"^[\x21-\x7e]{1,128}$")


class Meters(Protocol):
    """Who keeps count."""

    def reached(self, route: str, status: int, elapsed_s: float) -> None:
        """Note a request that was answered."""


def front(desks: Desks, config: ServeConfig, meters: Meters) -> FastAPI:
    """Make the application.

    Args:
        desks: Where the models are.
        config: Token and limits.
        meters: Who keeps count.

    Returns:
        An ASGI application.
    """
    app = FastAPI(
        title="distrib",
        version=__version__,
        description="Recommendations for any history, from the models that were trained.",
        docs_url=None,
        redoc_url=None,
    )
    app.state.asking = Asking(desks, config)
    app.include_router(routes.server)
    app.include_router(routes.models, dependencies=[Depends(_guard(config))])
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _failed)
    app.add_middleware(_Door, config=config, meters=meters)
    return app


def _guard(config: ServeConfig) -> Callable[..., Awaitable[None]]:
    """Return what lets requests through that bear the token."""
    scheme = HTTPBearer(auto_error=False, description="The token that the server was started with")

    async def guard(
        given: Annotated[HTTPAuthorizationCredentials | None, Depends(scheme)],
    ) -> None:
        if config.token is None:
            return
        wanted = config.token.get_secret_value().encode()
        shown = given.credentials.encode() if given else b""
        if not hmac.compare_digest(wanted, shown):
            raise HTTPException(
                401, "bear the server's token", headers={"WWW-Authenticate": "Bearer"}
            )

    return guard


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """Name every fault and where it is, but not the values, which may be anything."""
    assert isinstance(error, RequestValidationError)
    faults = [f"{'.'.join(map(str, f['loc'][1:]))}: {f['msg']}" for f in error.errors()[:20]]
    detail = "; ".join(faults).encode("ascii", "backslashreplace").decode()
    return _fault(request, 422, detail)


async def _failed(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return _fault(request, error.status_code, error.detail, error.headers)


def _fault(request: Request, status: int, detail: str, headers: Any = None) -> JSONResponse:
    body = {"detail": detail, "request_id": request.scope["state"]["request_id"]}
    return JSONResponse(body, status, headers)


class _Door:
    """Gives each request an id, bounds its body, times it, and answers for what went wrong."""

    def __init__(self, app: Any, config: ServeConfig, meters: Meters) -> None:
        self.app = app
        self.meters = meters
        self.max_bytes = math.ceil(config.max_body_mb * 2**20)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if _REQUEST_ID.match(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        started_s, status = time.perf_counter(), 500

        async def answered(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"].append((b"x-request-id", request_id.encode()))
            await send(message)

        try:
            await self._bounded(scope, headers, receive, answered)
        finally:
            elapsed_s = time.perf_counter() - started_s
            route = getattr(scope.get("route"), "path", "none")
            self.meters.reached(route, status, elapsed_s)
            if status >= 500:
                emit("request_failed", request_id=request_id, route=route, status=status)

    async def _bounded(
        self, scope: Any, headers: dict[bytes, bytes], receive: Any, send: Any
    ) -> None:
        """Read the body whole, so that a large one is told before anything else is done."""
        said = headers.get(b"content-length", b"0")
        pieces, size = [], int(said) if said.isdigit() else 0
        more = size <= self.max_bytes
        read = 0
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            pieces.append(message.get("body", b""))
            read += len(pieces[-1])
            more = message.get("more_body", False) and read <= self.max_bytes
        if max(size, read) > self.max_bytes:
            await self._too_large(scope, send)
            return
        body = iter([{"type": "http.request", "body": b"".join(pieces), "more_body": False}])

        async def replayed() -> Any:
            return next(body, None) or await receive()

        await self.app(scope, replayed, send)

    async def _too_large(self, scope: Any, send: Any) -> None:
        limit = f"{self.max_bytes / 2**20:g} MB"
        body = {
            "detail": f"the body is larger than {limit}; send less at a time",
            "request_id": scope["state"]["request_id"],
        }
        content = json.dumps(body).encode()
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": content})
