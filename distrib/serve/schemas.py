"""What requests and answers look like; the source of the OpenAPI page."""

from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from distrib.score.policy import Output

ItemId = Annotated[
    Annotated[int, Field(ge=-(2**63), lt=2**63)] | Annotated[str, Field(max_length=1024)],
    Field(union_mode="left_to_right"),
]
"""Ids are numbers or texts, as in the log that the model was trained on."""

Rating = Annotated[float, Field(allow_inf_nan=False)]
_Ids = list[ItemId]


class _Message(BaseModel):
    """Base of messages: strict but for whole numbers as ratings; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class History(_Message):
    """What a user interacted with, oldest first."""

    items: _Ids
    """Original ids; those that the model does not know are passed over."""

    ratings: list[Rating] | None = None
    """One for each item; needed by models that read ratings."""

    @model_validator(mode="after")
    def _equally_long(self) -> "History":
        if self.ratings is not None and len(self.ratings) != len(self.items):
            raise ValueError(f"{len(self.items)} items but {len(self.ratings)} ratings")
        return self


class RecommendOptions(_Message):
    """How a list is to be made; what is not given is as the server is set."""

    k: Annotated[int, Field(ge=1)] = 20
    """Items wanted."""

    exclude_seen: bool | None = None
    """Whether to leave out what is in the history."""

    deny: _Ids = Field(default_factory=list)
    """Items that must not come up."""

    candidates: _Ids | None = None
    """The only items that may come up."""

    min_score: Rating | None = None
    """Scores below it do not come up."""

    popularity_damping: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] | None = None
    """Taken off a score for each factor of e in the item's training interactions."""

    max_per_group: Annotated[int, Field(ge=1)] | None = None
    """Items of one group in the list, where the server knows groups."""

    diversity: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """0 ranks by score alone; towards 1 an item should be unlike those above it."""

    outputs: list[Output] | None = None
    """What is told of each item; ``embedding`` tells the vector of the user."""


class RecommendRequest(_Message):
    """One user's history, and what is wanted."""

    history: History
    options: RecommendOptions = Field(default_factory=RecommendOptions, alias="wishes")

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "history": {"items": [1193, 661, 914], "ratings": [5, 3, 3]},
                    "wishes": {"k": 10},
                },
                {
                    "history": {"items": ["B00005N5PF"]},
                    "wishes": {"k": 5, "deny": ["B0000AQS0F"], "diversity": 0.3},
                },
            ]
        }
    )


class RatingsRequest(_Message):
    """Items whose expected ratings are asked for."""

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
    """A user whose list is wanted with reasons."""

    history: History
    options: RecommendOptions = Field(default_factory=RecommendOptions, alias="wishes")
    max_reasons: Annotated[int, Field(ge=1, le=1000)] = 5
    """Interactions named for each item."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "history": {"items": [1193, 661, 914], "ratings": [5, 3, 3]},
                    "wishes": {"k": 3},
                    "max_reasons": 2,
                }
            ]
        }
    )


class MapRequest(_Message):
    """A user whose view of the whole catalogue is wanted."""

    history: History
    max_items: Annotated[int, Field(ge=1, le=100_000)] = 2000
    """An even sample of the catalogue where it is larger."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"history": {"items": [1193], "ratings": [5]}}]}
    )


class RecommendedItem(BaseModel):
    """One item of a list; what the model does not tell, or nobody asked for, is absent."""

    item: ItemId
    title: str | None = None
    score: float | None = None
    probability: float | None = None
    """That the user interacts with the item, 0..1."""
    rating: float | None = None
    """Expected, if so, on the scale of the log."""
    deviation: float | None = None
    """Standard deviation of the rating."""
    rating_distribution: list[float] | None = None
    """Over the levels."""
    serendipity: float | None = None
    """Of 0..1: unlikely to be met, likely to be loved."""


class Read(BaseModel):
    """Interactions of the request by what became of them."""

    used: int
    unknown_items: int
    duplicates: int
    ratings_off_scale: int


class RecommendAnswer(BaseModel):
    """A list, best first."""

    model: str
    version: str
    """First digits of the digest of the bundle that answered."""
    items: list[RecommendedItem]
    read: Read
    embedding: list[float] | None = None


class TargetRating(BaseModel):
    """Expected rating of one item; null where the model does not know the item."""

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
    """How much an interaction moved a score: with the whole history, less without it."""

    item: ItemId
    title: str | None = None
    influence: float


class ExplainedItem(BaseModel):
    """An item of a list with the interactions that moved its score most."""

    recommended: RecommendedItem
    reasons: list[Reason]


class ExplainAnswer(BaseModel):
    """A list, best first, with reasons."""

    model: str
    version: str
    items: list[ExplainedItem]
    read: Read


class MapPoint(BaseModel):
    """An item as the user stands to it."""

    item: ItemId
    title: str | None = None
    probability: float
    rating: float
    seen: bool


class MapAnswer(BaseModel):
    """Likely against liked, over the catalogue."""

    model: str
    version: str
    levels: list[float]
    items: list[MapPoint]


class ItemEntry(BaseModel):
    """An item of the catalogue."""

    item: ItemId
    title: str | None = None
    interactions: int
    """In training."""


class ItemsAnswer(BaseModel):
    """Items that fit a query, the most popular first."""

    items: list[ItemEntry]


class ModelCard(BaseModel):
    """What is served under a name."""

    name: str
    version: str
    bundle: dict[str, str]
    """Digests of its files, SHA-256."""
    model: dict[str, Any]
    """Its configuration."""
    tells: list[str]
    reads_ratings: bool
    levels: list[float]
    item_count: int
    num_users: int
    """Training users."""
    facts: dict[str, Any]
    """What training noted: epoch, metrics on validation, hash of the data."""
    loaded_at: str
    reload_fault: str | None = None
    """Why a newer bundle was not taken, where one could not be."""


class ModelsAnswer(BaseModel):
    """All that is served."""

    models: list[ModelCard]


class Health(BaseModel):
    """Whether all models answer."""

    status: str
    models: dict[str, str]
    """Version of each, or what is wrong."""


class Fault(BaseModel):
    """Why a request got no answer."""

    detail: str
    request_id: str


class Answer(NamedTuple):
    """What a desk gives back: a body, or a fault of the request."""

    status: int
    body: Any
