"""The prepare job: from a rating log to sharded histories, vocabulary and manifest."""

import json

import ray

from distrib import __version__
from distrib.config import JsonObject
from distrib.data.config import DataConfig
from distrib.data.dataset import FORMAT, MANIFEST, Dataset, DatasetManifest
from distrib.data.logs.config import ExpandedLog, SyntheticLog
from distrib.data.logs.generated import drawn_layout, drawn_pieces
from distrib.data.logs.rating_scale import scale_of
from distrib.data.logs.readers import log_pieces, with_held_out
from distrib.data.prepare import append, stages, write
from distrib.data.prepare.histories import counts_matrix
from distrib.data.prepare.parts import BEGUN, begin, finish, remove_parts
from distrib.data.prepare.row_counts import check_counts, contents, warn_of_signs, warn_of_times
from distrib.data.prepare.stages import ReadPlan, Survey
from distrib.data.schema import Origin, Status
from distrib.data.splits.liang_2018 import ML20M_ROWS, require_published
from distrib.data.splits.rules import GivenSplit, GlobalTimeSplit, LiangSplit
from distrib.errors import ConfigError, DataError
from distrib.events import emit
from distrib.storage import Folder
from distrib.vocabulary import LogFacts, Vocabulary

_LATER: dict[str, JsonObject] = {
    "ratings": {"values": {}, "unrated": [], "unrated_as": None},
    "source": {
        "where": {}, "time_format": None, "multiline": False, "escape": None,
        "null_values": [], "decimal": ".", "comment": "", "encoding": "utf-8",
        "user_first": False, "leading_columns": 0,
    },
}  # fmt: skip
"""Settings that earlier versions did not have, and what leaves the result as it was."""


def preflight(config: DataConfig) -> ReadPlan:
    """Check everything that can be checked without reading the whole log.

    Args:
        config: The ``data`` settings.

    Returns:
        How the log is read.

    Raises:
        ConfigError: Settings conflict.
        DataError: The log or one of its columns is missing, or the target folder holds other files
            or is not writable.
    """
    return _preflight(config)[0]


def _preflight(config: DataConfig) -> tuple[ReadPlan, JsonObject]:
    """Also return the recipe, so that file stamps are requested from the store only once."""
    plan = read_plan(config)
    folder = Folder(config.prepared)
    wanted = recipe(config, plan)
    if config.extend:
        append.require_extensible(wanted)
    if folder.exists(MANIFEST):
        found = Dataset.open(folder).manifest.recipe
        if config.extend:
            append.require_same_log(folder, found, wanted, plan.layout)
        elif found != wanted:
            changed = sorted(key for key in wanted if found.get(key) != wanted[key])
            raise DataError(
                f"{folder}: holds data of another preparation (differs in {', '.join(changed)}); "
                "set data.prepared to a new folder or remove this one; to add new files of the "
                "same log, set data.extend = true"
            )
    elif not folder.exists(BEGUN) and (others := _others(folder)):
        raise DataError(
            f"{folder}: holds files that prepare did not write ({', '.join(others[:3])}); set "
            "data.prepared to a new folder"
        )
    if config.extend or not folder.exists(MANIFEST):
        folder.require_writable()
    return plan, wanted


def recipe(config: DataConfig, plan: ReadPlan) -> JsonObject:
    """Return what the result depends on: the settings and the stamps of the log files."""
    unset = {"feedback"} if config.feedback is None else set[str]()
    found: JsonObject = json.loads(config.model_dump_json(exclude={"prepared", "extend"} | unset))
    if not found["split"].get("chronological", True):
        del found["split"]["chronological"]  # as in folders of earlier versions
    for section, later in _LATER.items():
        for key, default in later.items():
            if found[section].get(key, default) == default:
                found[section].pop(key, None)  # as in folders of earlier versions
    return {**found, "files": {file.label: file.stamp for file in plan.layout.files}}


def prepare(config: DataConfig) -> DatasetManifest:
    """Write histories, vocabulary and manifest; Ray must be running.

    The manifest is written last. If one already exists for the same recipe, nothing is done.

    Args:
        config: The ``data`` settings.

    Returns:
        The manifest.

    Raises:
        ConfigError: Settings conflict.
        DataError: The log is not usable; the message counts rejected rows.
    """
    plan, made_from = _preflight(config)
    folder = Folder(config.prepared)
    if folder.exists(MANIFEST):
        if config.extend:
            return append.extend(config, plan, made_from, folder)
        emit("already_prepared", folder=str(folder))
        found_there = Dataset.open(folder).manifest
        remove_parts(folder, found_there.file_names)
        folder.remove(BEGUN)
        return found_there
    token = begin(folder)
    blocks = stages.cleaned_blocks(plan, folder)
    survey = stages.survey(blocks, has_time=plan.layout.has_time)
    check_counts(survey.counts, config)
    warn_of_times(survey, plan.layout)
    split_state = stages.fit_split(blocks, plan.split, survey.counts[Status.KEPT], survey.num_users)
    counted = stages.count_items(blocks, plan.scale.levels, plan.split, split_state)
    vocabulary = Vocabulary(
        counted.table["item"].combine_chunks(),
        plan.scale.levels,
        counts_matrix(counted.table["train_count"]),
        counted.num_users,
        facts=_facts(config),
    )
    shared = ray.put(vocabulary)
    split_state = stages.with_drawn_targets(blocks, split_state, plan.split, shared)
    shards = write.write_shards(
        blocks, plan.split, split_state, shared, folder, has_time=plan.layout.has_time
    )
    found = contents(folder, survey, shards, vocabulary, config.num_item_files)
    manifest = DatasetManifest(
        format=FORMAT,
        distrib=__version__,
        recipe=made_from,
        generation=0,
        limits=tuple(str(limit) for limit in split_state.limits),
        quarantine=tuple(write.seal_quarantine(plan, folder)),
        **found.set_fields(),
    )
    if isinstance(plan.split, LiangSplit):
        _hold_to_source(plan, survey, vocabulary)
    finish(folder, token, manifest)
    emit("prepared", folder=str(folder), **_summary(manifest, vocabulary))
    warn_of_signs(vocabulary)
    return manifest


def _summary(manifest: DatasetManifest, vocabulary: Vocabulary) -> JsonObject:
    counts = manifest.counts
    found: JsonObject = {"counts": counts.to_json()}
    if counts.tied_share is not None:
        found["tied_share"] = round(counts.tied_share, 4)
    if vocabulary.facts.feedback is not None:
        found["training_feedback"] = vocabulary.sign_counts
    return found


def _facts(config: DataConfig) -> LogFacts:
    feedback = config.feedback.feedback if config.feedback else None
    return LogFacts(feedback, has_repeats=config.cleaning.duplicates == "keep")


def read_plan(config: DataConfig) -> ReadPlan:
    """Determine how a log is read.

    Args:
        config: The ``data`` settings.

    Returns:
        The plan.

    Raises:
        ConfigError: Settings conflict.
        DataError: The log or one of its columns is missing, or the layout is unknown.
    """
    source, split = config.source, config.split
    layout_is_drawn = isinstance(source, SyntheticLog | ExpandedLog)
    if isinstance(source, SyntheticLog | ExpandedLog):
        layout, found = drawn_layout(source), drawn_pieces(source)
        if isinstance(split, GivenSplit):
            raise ConfigError(
                f"data.split = 'given' needs a log in files, not one of format {source.format}"
            )
    else:
        layout = source.inspect()
        if isinstance(split, GivenSplit):
            held_out = [(split.test, int(Origin.TEST_FILE))]
            if split.valid:
                held_out.append((split.valid, int(Origin.VALID_FILE)))
            layout = with_held_out(layout, source, held_out)
        found = log_pieces(layout)
    if isinstance(split, GlobalTimeSplit) and not layout.has_time:
        raise ConfigError("data.split = 'global_time', but the log has no times; set columns.time")
    if config.feedback is not None and config.feedback.is_marked and layout_is_drawn:
        raise ConfigError(
            f"data.feedback.likes with a log of format {source.format}, which has ratings; set "
            "likes_above"
        )
    scale = scale_of(
        config.ratings,
        layout.levels,
        layout.columns,
        config.cleaning.duplicates,
        config.feedback,
    )
    return ReadPlan(source, layout, scale, config.cleaning, split, tuple(found), config.num_shards)


def _others(folder: Folder) -> list[str]:
    """Return the files of others in a folder; hidden ones were left by interrupted writers."""
    inside = [f"histories/{name}" for name in (folder / "histories").files()]
    return [name for name in [*folder.files(), *inside] if not name.startswith(".")]


def _hold_to_source(plan: ReadPlan, survey: Survey, vocabulary: Vocabulary) -> None:
    """Compare with the published counts if this is Liang's recipe on MovieLens-20M."""
    default = LiangSplit()
    if sum(survey.counts.values()) == ML20M_ROWS and plan.split == default:
        require_published(
            {
                "users": survey.num_users,
                "interactions": survey.counts[Status.KEPT],
                "items": len(vocabulary),
                "training users": vocabulary.num_users,
            }
        )
