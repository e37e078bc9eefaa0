"""The FastAPI application: authentication, body size limit, and error responses."""

import asyncio
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
from distrib.faults import in_request
from distrib.redaction import redacted
from distrib.serve import routes
from distrib.serve.config import ServeConfig
from distrib.serve.routes import ModelRouter, RouteContext

_BEARER = HTTPBearer(auto_error=False, description="The token that the server was started with")
"""For the OpenAPI schema only; the middleware checks the token before reading the body."""

_SECURITY = [
    (b"content-security-policy", b"default-src 'self'; style-src 'self' 'unsafe-inline'; "
     b"img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
]  # fmt: skip

_GONE = 499
"""Status in metrics of a client that has closed the connection; it is sent to no one."""

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
    field = getattr(request.scope.get("route"), "body_field", None)
    faults = in_request(error.errors(), None if field is None else field.field_info.annotation)
    detail = "; ".join(faults).encode("ascii", "backslashreplace").decode()
    return _fault(request, 422, detail)


async def _failed(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return _fault(request, error.status_code, error.detail, error.headers)


async def _broken(request: Request, _error: Exception) -> JSONResponse:
    return _fault(request, 500, "internal error; see the server log")


def _fault(request: Request, status: int, detail: str, headers: Any = None) -> JSONResponse:
    body = {"detail": redacted(detail), "request_id": request.scope["state"]["request_id"]}
    return JSONResponse(body, status, headers)


class _RequestMiddleware:
    """Checks the token, assigns a request id, limits bodies, and times each request.

    A body is read only where one is wanted, within limits of size and time for each request, and of
    the bytes that all requests hold together.
    """

    def __init__(self, app: Any, config: ServeConfig, metrics: HttpMetrics) -> None:
        self.app = app
        self.metrics = metrics
        self.max_bytes = math.ceil(config.max_body_mb * 2**20)
        self.max_held = max(math.ceil(config.max_held_mb * 2**20), self.max_bytes)
        self.limit_s = config.body_timeout_s
        self.held = 0
        self.token = config.token

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if _REQUEST_ID.match(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        started_s, status = time.perf_counter(), _GONE

        async def answered(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] += [(b"x-request-id", request_id.encode()), *_SECURITY]
            await send(message)

        try:
            if self._may_enter(scope["path"], headers):
                await self._bounded(scope, headers, receive, answered)
            else:
                extra = [(b"www-authenticate", b"Bearer")]
                await _turned_away(scope, answered, 401, "missing or invalid bearer token", extra)
        except Exception:
            status = 500
            raise
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
        wanted = self.token.get_secret_value().strip().encode()  # files end in a line end
        return hmac.compare_digest(wanted, shown.strip()) and kind.lower() == b"bearer"

    async def _bounded(
        self, scope: Any, headers: dict[bytes, bytes], receive: Any, send: Any
    ) -> None:
        """Read the whole body first, so that a bad one is refused before any other work."""
        if scope["method"] != "POST" or not scope["path"].startswith(routes.models.prefix):
            await self.app(scope, _nothing, send)
            return
        body, content = _Body(self, headers), None
        try:
            async with asyncio.timeout(self.limit_s):
                content = await body.read(receive)
        except TimeoutError:
            body.refusal = 408, f"no whole body within {self.limit_s:g} s"
        try:
            if body.refusal is not None:
                extra = [(b"connection", b"close"), (b"retry-after", b"1")]
                await _turned_away(scope, send, *body.refusal, extra)
            elif content is not None:
                whole = iter([{"type": "http.request", "body": content, "more_body": False}])

                async def replayed() -> Any:
                    return next(whole, None) or await receive()

                await self.app(scope, replayed, send)
        finally:
            self.held -= body.size


class _Body:
    """The body of a request as it arrives."""

    def __init__(self, owner: _RequestMiddleware, headers: dict[bytes, bytes]) -> None:
        declared = headers.get(b"content-length", b"0")
        self.declared = int(declared) if declared.isdigit() and len(declared) < 20 else 0
        self.owner = owner
        self.size = 0
        self.refusal: tuple[int, str] | None = None

    async def read(self, receive: Any) -> bytes | None:
        """Return the body; None if it is refused, or the client is gone."""
        pieces: list[bytes] = []
        more = self._fits(self.declared)
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            pieces.append(message.get("body", b""))
            self.size += len(pieces[-1])
            self.owner.held += len(pieces[-1])
            more = self._fits(self.size) and message.get("more_body", False)
        return None if self.refusal else b"".join(pieces)

    def _fits(self, size: int) -> bool:
        owner = self.owner
        if size > owner.max_bytes:
            limit = f"{owner.max_bytes / 2**20:g} MB"
            self.refusal = 413, f"the body is larger than {limit}; send less at a time"
        elif owner.held > owner.max_held:
            self.refusal = 429, "too many bodies at a time; retry later"
        return self.refusal is None


async def _nothing() -> Any:
    """Receive no body."""
    return {"type": "http.request", "body": b"", "more_body": False}


async def _turned_away(
    scope: Any, send: Any, status: int, detail: str, extra: list[tuple[bytes, bytes]]
) -> None:
    """Send an error response without calling the application."""
    body = {"detail": detail, "request_id": scope["state"]["request_id"]}
    headers = [(b"content-type", b"application/json"), *extra]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})
