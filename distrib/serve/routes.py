"""HTTP routes."""

import asyncio
import difflib
import json
from collections.abc import Callable, Coroutine
from importlib import resources
from typing import Annotated, Any, NamedTuple, Protocol

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.exceptions import HTTPException

from distrib.errors import excerpt
from distrib.scoring.policy import Output
from distrib.serve.arrow_stream import ARROW
from distrib.serve.config import ServeConfig
from distrib.serve.schemas import (
    Answer,
    ExplainAnswer,
    ExplainRequest,
    Fault,
    Health,
    HistoryAnswer,
    ItemsAnswer,
    MapAnswer,
    MapRequest,
    ModelCard,
    ModelsAnswer,
    RatingsAnswer,
    RatingsRequest,
    RecommendAnswer,
    RecommendOptions,
    RecommendRequest,
)

_PAGE = resources.files("distrib.serve") / "page"
_FILES = {"page.js": "text/javascript", "page.css": "text/css", "docs.js": "text/javascript"}
_RETRY_AFTER = {"Retry-After": "1"}
_FAULTS: dict[int | str, dict[str, Any]] = {
    401: {"model": Fault, "description": "Missing or invalid bearer token"},
    404: {"model": Fault, "description": "No such model or user"},
    408: {"model": Fault, "description": "The body did not arrive in time"},
    413: {"model": Fault, "description": "The body is too large, or has too many users"},
    422: {"model": Fault, "description": "The request is invalid"},
    429: {"model": Fault, "description": "Too many queued requests; retry later"},
    503: {"model": Fault, "description": "No answer in time; retry later"},
}


class _FastRequest(Request):
    """Reads JSON several times as fast as the standard library, and no deeper than 200 levels."""

    async def json(self) -> Any:
        content = await self.body()
        try:
            return from_json(content)
        except ValueError as error:
            raise json.JSONDecodeError(str(error), "", 0) from error  # which FastAPI knows


class _FastRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def answered(request: Request) -> Response:
            return await handler(_FastRequest(request.scope, request.receive))

        return answered


def _known_query(request: Request) -> None:
    """Refuse parameters that the route does not have; ignored, they would do nothing."""
    given = {*request.query_params}
    if not given:
        return
    described = request.app.openapi()["paths"][request.scope["route"].path_format]
    parameters = described[request.method.lower()].get("parameters", ())
    known = [one["name"] for one in parameters if one["in"] == "query"]
    unknown = sorted(given - {*known})
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        there_are = f"there are {', '.join(known)}" if known else "there are none"
        raise HTTPException(
            422, f"unknown query parameter {excerpt(unknown[0])!r}; {hint}{there_are}"
        )


server = APIRouter()
models = APIRouter(
    prefix="/v1", responses=_FAULTS, route_class=_FastRoute, dependencies=[Depends(_known_query)]
)


class ModelRouter(Protocol):
    """Forwards requests to the models."""

    names: tuple[str, ...]

    async def submit(self, model: str, what: str, *arguments: Any) -> Answer:
        """Send a request to a model; see `replica.Replica.submit`."""


class RouteContext(NamedTuple):
    """Shared state of the routes."""

    router: ModelRouter
    config: ServeConfig

    async def submit(self, model: str, what: str, *arguments: Any) -> Any:
        """Send a request to a model and return the body of the answer.

        Args:
            model: Model name.
            what: See `replica.Replica.submit`.
            *arguments: See `replica.Replica.submit`.

        Returns:
            The body.

        Raises:
            HTTPException: There is no such model, it refuses, or it does not answer in time.
        """
        names, limit_s = self.router.names, self.config.request_timeout_s
        if model not in names:
            raise HTTPException(404, f"no model {model!r}; available: {', '.join(names)}")
        try:
            answer = await asyncio.wait_for(self.router.submit(model, what, *arguments), limit_s)
        except TimeoutError:
            answer = Answer(503, {"detail": f"no answer within {limit_s:g} s"})
        if answer.status != 200:
            headers = _RETRY_AFTER if answer.status in {429, 503} else None
            raise HTTPException(answer.status, answer.body["detail"], headers=headers)
        return answer.body


def _context(request: Request) -> RouteContext:
    found: RouteContext = request.app.state.context
    return found


Context = Annotated[RouteContext, Depends(_context)]
StoredUser = Annotated[str, Path(max_length=1024, examples=["42"])]
ModelName = Annotated[str, Path(pattern=r"^[A-Za-z0-9_.-]{1,64}$", examples=["default"])]
Length = Annotated[int, Query(ge=1)]


Share = Annotated[float, Query(ge=0.0, le=1.0, allow_inf_nan=False)]
Positive = Annotated[float, Query(ge=0.0, allow_inf_nan=False)]


def _options(  # noqa: PLR0913  each is a query parameter
    k: Length = 20,
    *,
    exclude_seen: bool | None = None,
    min_score: Annotated[float, Query(allow_inf_nan=False)] | None = None,
    popularity_damping: Positive | None = None,
    max_per_group: Length | None = None,
    diversity: Share | None = None,
    outputs: Annotated[list[Output] | None, Query()] = None,
) -> RecommendOptions:
    """Read options from query parameters, for requests without a JSON body."""
    return RecommendOptions(
        k=k,
        exclude_seen=exclude_seen,
        min_score=min_score,
        popularity_damping=popularity_damping,
        max_per_group=max_per_group,
        diversity=diversity,
        outputs=outputs,
    )


@server.get("/healthz", responses={503: {"model": Health}}, tags=["server"])
async def health(context: Context, response: Response) -> Health:
    """Check whether every model answers."""
    found: dict[str, str] = {}
    for name in context.router.names:
        try:
            found[name] = (await context.submit(name, "card"))["version"]
        except HTTPException as error:
            found[name] = error.detail
            response.status_code = 503
    return Health(status="failing" if response.status_code == 503 else "ok", models=found)


@server.get("/", include_in_schema=False)
async def page() -> HTMLResponse:
    """Serve the demo page."""
    return HTMLResponse((_PAGE / "index.html").read_text(encoding="utf-8"))


@server.get("/docs", include_in_schema=False)
async def docs() -> HTMLResponse:
    """Serve the API documentation."""
    return HTMLResponse((_PAGE / "docs.html").read_text(encoding="utf-8"))


@server.get("/page/{name}", include_in_schema=False)
async def page_file(name: str) -> Response:
    """Serve scripts and styles of the pages."""
    if name not in _FILES:
        raise HTTPException(404, "no such file")
    return Response((_PAGE / name).read_bytes(), media_type=_FILES[name])


@models.get("/models", tags=["models"])
async def all_models(context: Context) -> ModelsAnswer:
    """List all served models."""
    cards = [await context.submit(name, "card") for name in context.router.names]
    return ModelsAnswer(models=[ModelCard(**card) for card in cards])


@models.get("/models/{model}", tags=["models"])
async def card(context: Context, model: ModelName) -> ModelCard:
    """Describe a model: configuration, training data, and metrics."""
    return ModelCard(**await context.submit(model, "card"))


@models.get("/models/{model}/items", tags=["models"])
async def items(
    context: Context,
    model: ModelName,
    query: Annotated[str, Query(max_length=200)] = "",
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> ItemsAnswer:
    """Find items by a substring of their id or title, most popular first."""
    return ItemsAnswer(**await context.submit(model, "items", query, limit))


@models.post(
    "/models/{model}/recommendations", response_model=RecommendAnswer, tags=["recommendations"]
)
async def recommend(context: Context, model: ModelName, request: RecommendRequest) -> Response:
    """Recommend to any user from a history."""
    return JSONResponse(await context.submit(model, "recommend", request))


@models.get(
    "/models/{model}/users/{user:path}/recommendations",
    response_model=RecommendAnswer,
    tags=["recommendations"],
)
async def recommend_stored(
    context: Context,
    model: ModelName,
    user: StoredUser,
    options: Annotated[RecommendOptions, Depends(_options)],
) -> Response:
    """Recommend to a user of the prepared data."""
    return JSONResponse(await context.submit(model, "recommend_stored", user, options))


@models.get("/models/{model}/users/{user:path}/history", tags=["models"])
async def history_of(context: Context, model: ModelName, user: StoredUser) -> HistoryAnswer:
    """Return what a user of the prepared data has met, as models read it."""
    return HistoryAnswer(**await context.submit(model, "history", user))


@models.post(
    "/models/{model}/recommendations.arrow",
    tags=["recommendations"],
    response_class=Response,
    responses={200: {"content": {ARROW: {}}, "description": "One row of lists per user"}},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {ARROW: {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def recommend_arrow(
    context: Context,
    model: ModelName,
    request: Request,
    options: Annotated[RecommendOptions, Depends(_options)],
) -> Response:
    """Recommend to many users at once: an Arrow stream with `user`, `items`, `ratings`.

    A list column `candidates` restricts the items of a user. The metadata of the returned stream
    counts rejected users, interactions by status, and unknown candidates.
    """
    content = await context.submit(model, "recommend_arrow", await request.body(), options)
    return Response(content, media_type=ARROW)


@models.post("/models/{model}/ratings", response_model=RatingsAnswer, tags=["ratings"])
async def ratings(context: Context, model: ModelName, request: RatingsRequest) -> Response:
    """Predict the ratings of some items."""
    return JSONResponse(await context.submit(model, "answer", request))


@models.post("/models/{model}/explanations", response_model=ExplainAnswer, tags=["reasons"])
async def explanations(context: Context, model: ModelName, request: ExplainRequest) -> Response:
    """Recommend, and list the interactions with the largest influence on each item's score."""
    return JSONResponse(await context.submit(model, "answer", request))


@models.post("/models/{model}/map", response_model=MapAnswer, tags=["reasons"])
async def map_of(context: Context, model: ModelName, request: MapRequest) -> Response:
    """Predict interaction probability and rating over the catalog, for a scatter plot."""
    return JSONResponse(await context.submit(model, "answer", request))
