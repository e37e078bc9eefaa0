"""Settings by the names that they had before 0.2: read with a warning until 0.3.

Run files, ``--set``, bundles and folders that earlier versions wrote pass through `renamed`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

_DATA = {
    "cleaning.is_iterated": "iterate_kcore",
    "source.is_quoted": "quoted",
    "source.has_line_breaks": "multiline",
    "source.taste": "interaction_effect",
    "source.fondness": "rating_effect",
    "split.is_exact": "exact",
    "split.is_chronological": "chronological",
}
_OBJECTIVE = {"divergence_cap": "kl_weight"}

NAMES: Mapping[str, str] = {
    **{f"data.{old}": new for old, new in _DATA.items()},
    **{f"score.events.{old}": new for old, new in _DATA.items()},
    "data.source.base.is_quoted": "quoted",
    "data.source.base.has_line_breaks": "multiline",
    "model.reads": "input",
    "model.divergence_scale": "gamma",
    "model.user_divergence": "user_kl_weight",
    "model.item_divergence": "item_kl_weight",
    "model.divergence_count": "kl_count",
    "model.centring": "centering",
    "model.is_tied": "tied",
    **{f"objective.{old}": new for old, new in _OBJECTIVE.items()},
    **{f"objective.base.{old}": new for old, new in _OBJECTIVE.items()},
    "train.room_s": "resource_timeout_s",
    "train.hang_s": "collective_timeout_s",
    "train.max_skipped": "max_skipped_updates",
    "train.rows_on_gpu": "histories_on_gpu",
    "train.blocks": "tiles",
    "score.since": "incremental_from",
    "score.form": "layout",
    "serve.fronts": "http_workers",
    "serve.max_waiting": "max_queue",
}
"""Last part of the present name, by the dotted earlier name."""

VALUES: Mapping[str, Mapping[str, str]] = {
    "data.split.name": {"strong_generalisation": "strong_generalization"},
    "score.events.split.name": {"strong_generalisation": "strong_generalization"},
}
"""Present value by the earlier one, by the name of the setting."""


class RenamedWarning(FutureWarning):
    """A setting was given by its earlier name."""


class Change(NamedTuple):
    """An earlier name, or value, that was met."""

    path: str
    old: str
    new: str

    @property
    def sentence(self) -> str:
        """What to say of it."""
        return f"{self.path}: {self.old!r} is now {self.new!r}"


def renamed(document: Any, section: str = "") -> tuple[Any, list[Change]]:
    """Return a document with the present names.

    Args:
        document: A run file, or a part of one.
        section: Dotted name of the part.

    Returns:
        The document, and what was changed; where both names are given, nothing is, so that the
        earlier one is refused as unknown.
    """
    changes: list[Change] = []
    return _renamed(document, section, changes), changes


def _renamed(node: Any, path: str, changes: list[Change]) -> Any:
    if not isinstance(node, dict):
        return node
    if path == "search.space":
        return {present(name): value for name, value in node.items()}
    found = {}
    for key, value in node.items():
        inner = f"{path}.{key}" if path else key
        new = NAMES.get(inner, key)
        if new != key and new in node:
            new = key
        if new != key:
            changes.append(Change(path, key, new))
        known = VALUES.get(inner, {})
        if isinstance(value, str) and value in known:
            changes.append(Change(inner, value, known[value]))
            value = known[value]
        found[new] = _renamed(value, inner, changes)
    return found


def present(name: str) -> str:
    """Return the present form of a dotted name of a setting."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        new = NAMES.get(".".join(parts[:end]))
        if new is not None:
            parts[end - 1] = new
    return ".".join(parts)
