"""Export of user and item embeddings for external nearest-neighbor search."""

from functools import partial

from distrib.checkpoint.bundle import BUNDLE, load_bundle
from distrib.config import Record
from distrib.events import emit
from distrib.fence import require_ours, take_over
from distrib.scoring.bulk import job
from distrib.scoring.commit import ScoreCounts
from distrib.scoring.policy import ScoreConfig
from distrib.scoring.vectors import (
    ExportConfig,
    is_written,
    require_faiss,
    require_vectors,
    write_items,
)
from distrib.storage import Folder

_BEGUN = "_begun.json"


class ExportResult(Record):
    """What was exported."""

    output: str
    items: int
    users: ScoreCounts | None = None


def preflight(run: str, prepared: str, config: ExportConfig, score: ScoreConfig) -> None:
    """Check that the model and data can be exported.

    Args:
        run: Run folder.
        prepared: The run's prepared data.
        config: What to export.
        score: Settings of the user embeddings.

    Raises:
        CheckpointError: There is no complete bundle in the run folder.
        ConfigError: faiss is needed but not installed.
        DataError: The model has no item embeddings, or the histories are absent.
    """
    require_faiss(config)
    require_vectors(load_bundle(Folder(run) / BUNDLE).model)
    if config.users:
        job.preflight(run, prepared, _of_users(run, config, score))


def export(run: str, prepared: str, config: ExportConfig, score: ScoreConfig) -> ExportResult:
    """Write the embeddings of all items with their index and, exactly once, of all users.

    Args:
        run: Run folder with a bundle.
        prepared: The run's prepared data.
        config: What to export.
        score: Selects the users: ``histories`` or ``events``, ``batch_users`` and so on.

    Returns:
        Output folder and counts.

    Raises:
        TakenOverError: A later start writes there.
    """
    target = _target(run, config)
    bundle = load_bundle(Folder(run) / BUNDLE)
    if not is_written(target, bundle, config):
        token = take_over(target, _BEGUN)
        about = write_items(
            bundle, target, config.index, partial(require_ours, target, token, _BEGUN)
        )
        emit("exported", folder=str(target), **about)
    target.remove(_BEGUN)
    users = None
    if config.users:
        users = job.score(run, prepared, _of_users(run, config, score)).counts
    return ExportResult(output=str(target), items=len(bundle.vocabulary), users=users)


def _target(run: str, config: ExportConfig) -> Folder:
    return Folder(config.output) if config.output else Folder(run) / "vectors"


def _of_users(run: str, config: ExportConfig, score: ScoreConfig) -> ScoreConfig:
    output = str(_target(run, config) / "users")
    alone = {"outputs": ("embedding",), "output": output, "serendipitous_k": 0}
    plain = {"layout": "nested", "incremental_from": None, "table": None}
    return score.model_copy(update=alone | plain)
