"""The FastAPI application: authentication, body size limit, and error responses."""

import hmac
import json
import math
import re
import time
import uuid
from typing import Any, Protocol

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from distrib import __version__
from distrib.events import emit
from distrib.serve import routes
from distrib.serve.config import ServeConfig
from distrib.serve.routes import ModelRouter, RouteContext

_BEARER = HTTPBearer(auto_error=False, description="The token that the server was started with")
"""For the OpenAPI schema only; the middleware checks the token before reading the body."""

_REQUEST_ID = re.compile(r"^[\x21-\x7e]{1,128}$")


class HttpMetrics(Protocol):
    """Receives request metrics."""

    def reached(self, route: str, status: int, elapsed_s: float) -> None:
        """Record an answered request."""


def make_app(router: ModelRouter, config: ServeConfig, metrics: HttpMetrics) -> FastAPI:
    """Make the application.

    Args:
        router: Forwards requests to the models.
        config: Token and limits.
        metrics: Receives request metrics.

    Returns:
        An ASGI application.
    """
    app = FastAPI(
        title="distrib",
        version=__version__,
        description="Recommendations from trained models, for any user history.",
        docs_url=None,
        redoc_url=None,
    )
    app.state.context = RouteContext(router, config)
    app.include_router(routes.server)
    app.include_router(routes.models, dependencies=[Depends(_BEARER)])
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _failed)
    app.add_exception_handler(Exception, _broken)
    app.add_middleware(_RequestMiddleware, config=config, metrics=metrics)
    return app


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """List every error and its location, but not the values, which are arbitrary client input."""
    assert isinstance(error, RequestValidationError)
    faults = [f"{'.'.join(map(str, f['loc'][1:]))}: {f['msg']}" for f in error.errors()[:20]]
    detail = "; ".join(faults).encode("ascii", "backslashreplace").decode()
    return _fault(request, 422, detail)


async def _failed(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return _fault(request, error.status_code, error.detail, error.headers)


async def _broken(request: Request, _error: Exception) -> JSONResponse:
    return _fault(request, 500, "internal error; see the server log")


def _fault(request: Request, status: int, detail: str, headers: Any = None) -> JSONResponse:
    body = {"detail": detail, "request_id": request.scope["state"]["request_id"]}
    return JSONResponse(body, status, headers)


class _RequestMiddleware:
    """Checks the token, assigns a request id, limits the body size, and times each request."""

    def __init__(self, app: Any, config: ServeConfig, metrics: HttpMetrics) -> None:
        self.app = app
        self.metrics = metrics
        self.max_bytes = math.ceil(config.max_body_mb * 2**20)
        self.token = config.token

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
            if self._may_enter(scope["path"], headers):
                await self._bounded(scope, headers, receive, answered)
            else:
                extra = [(b"www-authenticate", b"Bearer")]
                await _turned_away(scope, answered, 401, "missing or invalid bearer token", extra)
        finally:
            elapsed_s = time.perf_counter() - started_s
            route = getattr(scope.get("route"), "path", "none")
            self.metrics.reached(route, status, elapsed_s)
            if status >= 500:
                emit("request_failed", request_id=request_id, route=route, status=status)

    def _may_enter(self, path: str, headers: dict[bytes, bytes]) -> bool:
        """Check the token in constant time, if one is set and the path belongs to a model."""
        if self.token is None or not path.startswith(routes.models.prefix):
            return True
        kind, _, shown = headers.get(b"authorization", b"").partition(b" ")
        wanted = self.token.get_secret_value().encode()
        return hmac.compare_digest(wanted, shown.strip()) and kind.lower() == b"bearer"

    async def _bounded(
        self, scope: Any, headers: dict[bytes, bytes], receive: Any, send: Any
    ) -> None:
        """Read the whole body first, so that a too large one is refused before any other work."""
        declared = headers.get(b"content-length", b"0")
        pieces, size = [], int(declared) if declared.isdigit() else 0
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
            limit = f"{self.max_bytes / 2**20:g} MB"
            detail = f"the body is larger than {limit}; send less at a time"
            await _turned_away(scope, send, 413, detail, [(b"connection", b"close")])
            return
        body = iter([{"type": "http.request", "body": b"".join(pieces), "more_body": False}])

        async def replayed() -> Any:
            return next(body, None) or await receive()

        await self.app(scope, replayed, send)


async def _turned_away(
    scope: Any, send: Any, status: int, detail: str, extra: list[tuple[bytes, bytes]]
) -> None:
    """Send an error response without calling the application."""
    body = {"detail": detail, "request_id": scope["state"]["request_id"]}
    headers = [(b"content-type", b"application/json"), *extra]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})
