"""Schemas of requests and responses; the source of the OpenAPI page."""

from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetPydanticSchema,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema

from distrib.config import JsonObject
from distrib.ids import id_of
from distrib.scoring.policy import Output


def _whole(value: float) -> int:
    """Return whole floats as integers; some writers of JSON know no others."""
    found = id_of(value, "int")
    if found is None:
        raise ValueError("not a whole number")
    return int(found)


def _with_one_error(source: Any, handler: GetCoreSchemaHandler) -> Any:
    """Report a wrong id once, not once for each type that it is not."""
    message = "must be an integer of 64 bits, or a string of at most 1024 characters"
    error = {"custom_error_type": "item_id", "custom_error_message": message}
    return {**handler(source), **error}


if TYPE_CHECKING:
    ItemId = int | str
else:
    ItemId = Annotated[
        Annotated[int, Field(ge=-(2**63), lt=2**63, strict=True)]
        | Annotated[str, Field(max_length=1024, strict=True)]
        | SkipJsonSchema[Annotated[float, AfterValidator(_whole)]],
        Field(union_mode="left_to_right"),
        GetPydanticSchema(_with_one_error),
    ]
    """Ids are integers or strings, as in the log that the model was trained on."""

Rating = Annotated[float, Field(allow_inf_nan=False)]
_MOST_IDS = 10_000_000
_MOST_KEYS = 50
_Ids = Annotated[list[ItemId], Field(max_length=_MOST_IDS, fail_fast=True)]
"""The first wrong id ends the check: a fault for each of a million would take a gigabyte."""

_Numbers = Annotated[list[Rating], Field(max_length=_MOST_IDS, fail_fast=True)]


class _Message(BaseModel):
    """Base of requests: strict, except that ratings may be integers; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _few_keys(cls, value: Any) -> Any:
        """Refuse more keys than there can be, before a fault is built for each of them."""
        if isinstance(value, dict) and len(value) > _MOST_KEYS:
            raise ValueError(f"{len(value)} keys; there are {len(cls.model_fields)}")
        return value


class History(_Message):
    """A user's interactions, oldest first."""

    items: _Ids
    """Original ids; unknown ones are ignored."""

    ratings: _Numbers | None = None
    """One per item; required by models that read ratings."""

    times: _Numbers | None = None
    """One per item, in any unit; without them, the items are in the order of time."""

    @model_validator(mode="after")
    def _equally_long(self) -> "History":
        for name, found in (("ratings", self.ratings), ("times", self.times)):
            if found is not None and len(found) != len(self.items):
                raise ValueError(f"{len(self.items)} items but {len(found)} {name}")
        return self


class RecommendOptions(_Message):
    """Options of a list; the server's policy is the default."""

    k: Annotated[int, Field(ge=1)] = 20
    """Length of the list."""

    exclude_seen: bool | None = None
    """Whether to leave out items of the history."""

    deny: _Ids = Field(default_factory=list)
    """Items that must not be recommended."""

    candidates: _Ids | None = None
    """The only items that may be recommended."""

    min_score: Rating | None = None
    """Items with a lower score are left out."""

    popularity_damping: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] | None = None
    """This times log(1 + training interactions of the item) is subtracted from its score."""

    max_per_group: Annotated[int, Field(ge=1)] | None = None
    """Most items of one group in the list, if the server has item groups."""

    diversity: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """MMR weight: 0 ranks by score alone; towards 1, dissimilarity to items above counts more."""

    outputs: Annotated[list[Output], Field(fail_fast=True)] | None = None
    """Outputs per item; `embedding` adds the user embedding."""


_Options = Annotated[RecommendOptions, Field(validation_alias=AliasChoices("options", "wishes"))]
"""``wishes`` is the name before 0.2; read until 0.3."""


class RecommendRequest(_Message):
    """One user's history, and options of the list."""

    history: History
    options: _Options = Field(default_factory=RecommendOptions)

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "history": {"items": [1193, 661, 914], "ratings": [5, 3, 3]},
                    "options": {"k": 10},
                },
                {
                    "history": {"items": ["B00005N5PF"]},
                    "options": {"k": 5, "deny": ["B0000AQS0F"], "diversity": 0.3},
                },
            ]
        }
    )


class RatingsRequest(_Message):
    """A user's history, and items to predict ratings for."""

    history: History
    targets: Annotated[_Ids, Field(min_length=1, max_length=10_000)]
    """The items."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"history": {"items": [1193, 661], "ratings": [5, 3]}, "targets": [914, 3408]}
            ]
        }
    )


class ExplainRequest(_Message):
    """One user's history, and options of the explained list."""

    history: History
    options: _Options = Field(default_factory=RecommendOptions)
    max_reasons: Annotated[int, Field(ge=1, le=1000)] = 5
    """Most influential interactions listed per item."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "history": {"items": [1193, 661, 914], "ratings": [5, 3, 3]},
                    "options": {"k": 3},
                    "max_reasons": 2,
                }
            ]
        }
    )


class MapRequest(_Message):
    """A user's history, for predictions over the whole catalog."""

    history: History
    max_items: Annotated[int, Field(ge=1, le=100_000)] = 2000
    """A larger catalog is sampled evenly."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"history": {"items": [1193], "ratings": [5]}}]}
    )


class RecommendedItem(BaseModel):
    """One item of a list; outputs that are not predicted or not requested are absent."""

    item: ItemId
    title: str | None = None
    score: float | None = None
    probability: float | None = None
    """Probability that the user interacts with the item, 0..1."""
    rating: float | None = None
    """Expected rating given an interaction, on the scale of the log."""
    deviation: float | None = None
    """Standard deviation of the rating."""
    rating_distribution: list[float] | None = None
    """Probability of each level."""
    serendipity: float | None = None
    """(1 - probability) * rating scaled to 0..1."""


class Read(BaseModel):
    """Interactions of the request by status."""

    used: int
    """Accepted; a model with a `max_length` reads the last ones of these."""
    unknown_items: int
    duplicates: int
    ratings_off_scale: int
    unknown_candidates: int = 0
    """Candidates of the request that the model does not know."""


class RecommendAnswer(BaseModel):
    """A list, best first."""

    model: str
    version: str
    """Short hash of the bundle's manifest."""
    items: list[RecommendedItem]
    read: Read
    embedding: list[float] | None = None


class TargetRating(BaseModel):
    """Expected rating of one item; null for an unknown item."""

    item: ItemId
    rating: float | None
    deviation: float | None = None


class RatingsAnswer(BaseModel):
    """Expected ratings, in the order of the targets."""

    model: str
    version: str
    ratings: list[TargetRating]
    read: Read


class Reason(BaseModel):
    """Influence of an interaction: the score with the whole history minus without it."""

    item: ItemId
    title: str | None = None
    influence: float


class ExplainedItem(BaseModel):
    """An item of a list with the most influential interactions."""

    recommended: RecommendedItem
    reasons: list[Reason]


class ExplainAnswer(BaseModel):
    """A list, best first, with reasons."""

    model: str
    version: str
    items: list[ExplainedItem]
    read: Read


class MapPoint(BaseModel):
    """Predictions of one item for the user."""

    item: ItemId
    title: str | None = None
    probability: float
    rating: float
    seen: bool


class MapAnswer(BaseModel):
    """Interaction probability and expected rating over the catalog."""

    model: str
    version: str
    levels: list[float]
    items: list[MapPoint]


class ItemEntry(BaseModel):
    """An item of the catalog."""

    item: ItemId
    title: str | None = None
    interactions: int
    """Number of training interactions."""


class HistoryEntry(ItemEntry):
    """An item of a user's history."""

    rating: float | None = None
    """Where the log has ratings."""


class HistoryAnswer(BaseModel):
    """The history of a user of the prepared data, oldest first; items of the catalog only."""

    user: str
    items: list[HistoryEntry]


class ItemsAnswer(BaseModel):
    """Items that match a query, most popular first."""

    items: list[ItemEntry]


class ModelCard(BaseModel):
    """Description of a served model."""

    name: str
    version: str
    bundle: dict[str, str]
    """SHA-256 digests of the bundle's files."""
    model: JsonObject
    """Model configuration."""
    outputs: list[str]
    """What the model predicts of an item."""

    tells: Annotated[list[str], Field(deprecated="now outputs")]
    reads_ratings: bool
    reads_repeats: bool
    """Whether a history may hold an item more than once."""
    levels: list[float]
    item_count: int
    num_users: int
    """Number of training users."""
    facts: JsonObject
    """Facts recorded by training: epoch, validation metrics, hash of the data."""
    loaded_at: str
    reload_fault: str | None = None
    """Why the last reload of a newer bundle failed, if it did."""


class ModelsAnswer(BaseModel):
    """All served models."""

    models: list[ModelCard]


class Health(BaseModel):
    """Whether all models answer."""

    status: str
    models: dict[str, str]
    """Version of each model, or the error."""


class Fault(BaseModel):
    """An error response."""

    detail: str
    request_id: str


class Answer(NamedTuple):
    """Result of a request to a model: a response body, or an error detail."""

    status: int
    body: Any
