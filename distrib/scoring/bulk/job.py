"""Bulk scoring on the cluster: one output part per fragment of the histories, exactly once."""

import json
import time
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from distrib import __version__
from distrib.checkpoint.bundle import BUNDLE, BundleFacts, load_bundle
from distrib.checkpoint.manifest import Manifest, read_manifest
from distrib.cluster.actors import actor_pool
from distrib.cluster.prometheus import keep, show
from distrib.config import JsonObject, read_record
from distrib.data.config import DataConfig
from distrib.data.dataset import MANIFEST, Dataset
from distrib.data.prepare import job as preparation
from distrib.data.splits.rules import NoSplit
from distrib.errors import CheckpointError, ConfigError, DataError
from distrib.events import Interval, emit
from distrib.scoring.bulk.fragments import (
    Fragment,
    FragmentScorer,
    InputFile,
    PreviousRun,
    fragments_of,
)
from distrib.scoring.bulk.new_items import require_extended, with_new_items
from distrib.scoring.bulk.unseen import first_items, known_counts
from distrib.scoring.commit import (
    PartManifest,
    Publication,
    ScoreResult,
    add_counts,
    previous_runs,
    require_same,
)
from distrib.scoring.policy import PolicyConfig, ScoreConfig
from distrib.scoring.rules import unknown_items
from distrib.scoring.scorer import Scorer, require_numbers
from distrib.scoring.tables import recommend_table
from distrib.storage import Folder

_PROGRESS_S = 10.0
_NOT_OF_LISTS = {
    *(
        "output",
        "batch_users",
        "fragment_users",
        "gpus_per_actor",
        "incremental_from",
        "events",
        "histories",
    ),
    *("max_unseen_share", "table"),
}


class Work(NamedTuple):
    """Plan of a scoring run, made before any actor starts."""

    bundle: str
    histories: str
    output: str
    files: tuple[InputFile, ...]
    is_prepared: bool
    recipe: JsonObject

    @property
    def publication(self) -> Publication:
        """Publishes the lists."""
        return Publication(Folder(self.output), self.recipe)


def preflight(run: str, prepared: str, config: ScoreConfig) -> None:
    """Check model, histories and policy against each other.

    Args:
        run: Run folder.
        prepared: The run's prepared data.
        config: Settings of the run.

    Raises:
        CheckpointError: There is no complete bundle in the run folder.
        ConfigError: Settings conflict.
        DataError: The histories are absent or lack a column, the model has no serendipitous list,
            or the previous run has another model or policy.
    """
    check_histories(config)
    if config.events is None:
        _rehearse(plan_scoring(run, prepared, config), config)
    else:
        _bundle_manifest(run)


def check_histories(config: ScoreConfig) -> None:
    """Check the configured histories before there is a model.

    Args:
        config: Settings of the run.

    Raises:
        ConfigError: Settings conflict.
        DataError: The histories are absent or lack a column.
    """
    if config.histories:
        _files(Folder(config.histories))
    if config.events is not None:
        preparation.preflight(_unsplit(config.events))


def score(run: str, prepared: str, config: ScoreConfig) -> ScoreResult:
    """Recommend to every user and write the lists as Parquet; ``_SUCCESS`` is written last.

    Columns of the nested form: ``user``, ``history_digest``, ``items`` (original ids, best first),
    ``scores``; if the model predicts them ``probabilities``, ``ratings``, ``deviations`` (of
    ratings, over the posteriors of user and item) and ``rating_distribution`` (one list over levels
    per item); and the same with prefix ``serendipitous_`` for a second list. The long form has a
    row per recommendation: ``item``, ``rank`` from 1, ``score`` and so on.

    Each fragment of the input has one part, written atomically. A restart makes only the missing
    parts, and the result is byte for byte that of an uninterrupted run.

    Args:
        run: Run folder with a bundle.
        prepared: The run's prepared data, scored unless ``config`` names other histories.
        config: Settings of the run.

    Returns:
        Output folder and counts.
    """
    if config.events is not None:
        events = _unsplit(config.events)
        preparation.prepare(events)
        config = config.model_copy(update={"events": None, "histories": events.prepared})
    work = plan_scoring(run, prepared, config)
    done = work.publication.already()
    if done is not None:
        note_published()
        return done
    _rehearse(work, config)
    fragments = fragments_of(Folder(work.histories), work.files, config.fragment_users)
    ids_of = partial(_some_ids, work)
    result = work.publication.complete(
        {fragment.part for fragment in fragments},
        lambda found: _scored(work, config, fragments, found),
        lambda parts: known_counts(add_counts(parts), ids_of, config.max_unseen_share),
        __version__,
    )
    note_published()
    return result


def _some_ids(work: Work) -> tuple[pa.Array, pa.Array]:
    """Return some item ids of the histories, and those of the model."""
    vocabulary, histories = load_bundle(Folder(work.bundle)).vocabulary, Folder(work.histories)
    if work.is_prepared:
        return Dataset.open(histories).vocabulary.ids, vocabulary.ids
    return first_items(histories, work.files[0].name), vocabulary.ids


def note_published() -> None:
    """Record in a gauge that lists are up to date."""
    keep("score_published_seconds", "Unix time when lists were last up to date.", time.time())


def plan_scoring(run: str, prepared: str, config: ScoreConfig) -> Work:
    """List the files to score and everything their lists depend on.

    Args:
        run: Run folder.
        prepared: The run's prepared data.
        config: Settings of the run; without events.

    Returns:
        The plan.

    Raises:
        CheckpointError: There is no complete bundle in the run folder.
        ConfigError: ``score.incremental_from`` is the output folder.
        DataError: Histories or files of the policy are absent, the output folder holds other files,
            or the previous run has another model or policy.
    """
    bundle = Folder(run) / BUNDLE
    manifest = _bundle_manifest(run)
    facts = read_record(BundleFacts, manifest.facts, bundle)
    histories = Folder(config.histories or prepared)
    if config.new_items:
        require_extended(facts, histories)
    output = config.output or str(Folder(run) / "recommendations")
    if Folder(output).url == histories.url:
        raise DataError(f"{output}: score.output is where the histories are; set another folder")
    files, identity = _files(histories)
    if facts.data == identity:
        files = _numbered(histories, files)
    elif config.new_users == "reject":
        raise ConfigError(
            f"score.new_users = 'reject' with histories {histories}: only the prepared data of the "
            "run say which users training saw; set it to 'fold_in', or remove score.histories"
        )
    policy = json.loads(config.model_dump_json(exclude=_NOT_OF_LISTS))
    made_by = {"bundle": manifest.digests, "policy": policy, "lists": _stamps(config.policy)}
    recipe = {**made_by, "vocabulary": facts.vocabulary, "histories": identity}
    recipe["fragment_users"] = config.fragment_users
    if config.table is not None:
        recipe["table"] = config.table.model_dump()
    if config.incremental_from:
        before = Folder(config.incremental_from)
        if Folder(output).url in {one.url for one in previous_runs(before)}:
            raise ConfigError(
                f"score.incremental_from = {before} is the output folder, or builds on it; set "
                "score.output to another folder, so that the previous lists stay"
            )
        recipe["incremental_from"] = require_same(before, made_by)
    work = Work(str(bundle), str(histories), output, files, histories.exists(MANIFEST), recipe)
    work.publication.require_ours()
    return work


def _bundle_manifest(run: str) -> Manifest:
    bundle = Folder(run) / BUNDLE
    if not bundle.exists():
        raise CheckpointError(f"{bundle}: no bundle to score with; run distrib train first")
    return read_manifest(bundle)


def _unsplit(events: DataConfig) -> DataConfig:
    """Replace the split of raw events, so that nothing is held out of scoring."""
    if "split" in events.model_fields_set and not isinstance(events.split, NoSplit):
        raise ConfigError(
            f"score.events.split = {events.split.name!r}: events to score are not split; remove it"
        )
    return events.model_copy(update={"split": NoSplit()})


def _files(histories: Folder) -> tuple[tuple[InputFile, ...], Any]:
    """Return the files to score, and the identity of their content."""
    if not histories.exists():
        raise DataError(f"{histories}: no such folder or bucket; check score.histories")
    if histories.exists(MANIFEST):
        manifest = Dataset.open(histories).manifest
        return tuple(InputFile(s.name, s.sha256) for s in manifest.shards), manifest.hash
    if not histories.is_folder():
        raise DataError(f"{histories}: is a file; set score.histories to its folder")
    names = [name for name in histories.data_files() if name.endswith(".parquet")]
    if not names:
        raise DataError(f"{histories}: no Parquet files and no {MANIFEST}; nothing to score")
    stamps = {name: histories.stamp(name) for name in names}
    return tuple(InputFile(name, stamp=stamps[name]) for name in names), stamps


def _numbered(histories: Folder, files: tuple[InputFile, ...]) -> tuple[InputFile, ...]:
    """Add shard numbers, from which the training indices of users follow."""
    manifest = Dataset.open(histories).manifest
    num_shards = manifest.made_from.num_shards
    return tuple(
        file._replace(shard=(entry.shard, num_shards))
        for file, entry in zip(files, manifest.shards, strict=True)
    )


def _stamps(policy: PolicyConfig) -> dict[str, str]:
    """Return the version stamps of the files of a policy."""
    urls = [url for url in (policy.allow, policy.deny, policy.groups) if isinstance(url, str)]
    return {url: Folder(url).stamp() for url in urls}


def _rehearse(work: Work, config: ScoreConfig) -> None:
    """Dry-run: score an empty table per schema, so that errors surface before actors start."""
    bundle = load_bundle(Folder(work.bundle))
    _require_bundle(work, bundle.manifest)
    scorer = Scorer(bundle.model, bundle.vocabulary, precision=config.precision)
    require_numbers(scorer)
    histories = Folder(work.histories)
    source = Dataset.open(histories).vocabulary if work.is_prepared else None
    tried: set[str] = set()
    for file in work.files:
        with histories.open(file.name) as stream:
            try:
                schema = pq.read_schema(stream)
            except pa.ArrowException as error:
                place = histories / file.name
                raise DataError(f"{place}: is not a valid Parquet file ({error})") from error
        if str(schema) not in tried:
            tried.add(str(schema))
            try:
                recommend_table(scorer, schema.empty_table(), source, config)
            except DataError as error:
                raise DataError(f"{histories / file.name}: {error}") from error
        if work.is_prepared:
            break  # all shards have one schema
    unknown = unknown_items(config.policy, bundle.vocabulary)
    if unknown:
        emit("unknown_items", policy=unknown)


def _require_bundle(work: Work, manifest: Manifest) -> None:
    if work.recipe["bundle"] != manifest.digests:
        raise CheckpointError(f"{work.bundle}: changed since scoring was planned; start again")


def _scored(
    work: Work, config: ScoreConfig, fragments: list[Fragment], done: Mapping[str, PartManifest]
) -> list[PartManifest]:
    """Score the unfinished fragments, on as many actors as fit."""
    todo = [fragment for fragment in fragments if fragment.part not in done]
    if done:
        emit("resumed", done=len(done), left=len(todo))
    if not todo:
        return []
    previous = (
        PreviousRun.of(previous_runs(Folder(config.incremental_from)))
        if config.incremental_from
        else None
    )
    pieces = [{"fragment": json.dumps(fragment)} for fragment in todo]
    blocks = ray.data.from_items(pieces, override_num_blocks=len(pieces)).map_batches(
        _FragmentActor,
        fn_constructor_kwargs={
            "work": work,
            "config": config,
            "previous": None if previous is None else ray.put(previous),
        },
        batch_size=1,
        batch_format="pyarrow",
        num_gpus=config.gpus_per_actor,
        compute=actor_pool(config.gpus_per_actor, len(pieces)),
    )
    tables = blocks.iter_batches(batch_size=None, batch_format="pyarrow")
    parts = (
        PartManifest.model_validate_json(text)
        for table in tables
        for text in table["part"].to_pylist()
    )
    return list(_watched(parts, sum(fragment.num_rows for fragment in todo)))


def _watched(parts: Iterable[PartManifest], num_users: int) -> Iterable[PartManifest]:
    """Pass parts through, and report progress every `_PROGRESS_S` seconds."""
    interval, started_s, first, reached = Interval(_PROGRESS_S), time.monotonic(), 0, 0
    for part in parts:
        reached += part.users["read"]
        if not first:  # what comes before the first part is mostly the start of actors
            started_s, first = time.monotonic(), reached
        show("score_users", "Users read so far.", reached)
        show("score_users_wanted", "Users to read in this attempt.", num_users)
        if reached > first and interval.due():
            rate = (reached - first) / (time.monotonic() - started_s)
            left_s = (num_users - reached) / max(rate, 1e-9)
            emit(
                "scoring",
                users=reached,
                of=num_users,
                users_per_s=round(rate),
                left_s=round(left_s),
            )
        yield part


class _FragmentActor:
    """Loads the model once; scores one fragment per call."""

    def __init__(self, work: Work, config: ScoreConfig, previous: Any) -> None:
        histories = Folder(work.histories)
        bundle = load_bundle(Folder(work.bundle))
        _require_bundle(work, bundle.manifest)
        device = "cuda" if config.gpus_per_actor else "cpu"
        scorer = Scorer(bundle.model, bundle.vocabulary, device=device, precision=config.precision)
        if config.new_items:
            scorer = with_new_items(scorer, histories)
        source = Dataset.open(histories).vocabulary if work.is_prepared else None
        known: PreviousRun | None = None if previous is None else ray.get(previous)
        self.fragments = FragmentScorer(scorer, histories, source, work.publication, config, known)
        if _stamps(config.policy) != work.recipe["lists"]:
            raise DataError("files of score.policy changed since scoring was planned; start again")

    def __call__(self, piece: pa.Table) -> pa.Table:
        fields = json.loads(piece["fragment"][0].as_py())
        fields[-1] = tuple(fields[-1]) if fields[-1] else None
        part = self.fragments.write(Fragment(*fields))
        return pa.table({"part": [part.model_dump_json(exclude_unset=True)]})
