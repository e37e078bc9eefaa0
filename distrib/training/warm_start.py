"""Initialize a model from an earlier one on an older catalog, or from models of other kinds."""

from collections.abc import Sequence

import torch

from distrib.checkpoint.bundle import BUNDLE, Bundle, load_bundle
from distrib.models import ModelConfig
from distrib.models.base import Model
from distrib.models.capabilities import StartsFromModels
from distrib.parameters import roles_of
from distrib.storage import Folder
from distrib.vocabulary import Vocabulary


def kind_faults(bundle: Bundle, config: ModelConfig, levels: tuple[float, ...]) -> list[str]:
    """Return why training cannot start from an earlier model, if it cannot.

    Args:
        bundle: The earlier model.
        config: Configuration of the new model.
        levels: Rating levels of the new model.

    Returns:
        At most one fault.
    """
    faults = []
    if bundle.config != config:
        faults.append(f"model is {bundle.config!r} there, {config!r} now")
    if bundle.vocabulary.levels != levels:
        faults.append(f"levels are {list(bundle.vocabulary.levels)} there, {list(levels)} now")
    return [f"train.warm_start: {'; '.join(faults)}; make them equal, or remove it"] * bool(faults)


def begin_with(model: Model, vocabulary: Vocabulary, bundle: Bundle) -> int:
    """Copy an earlier model's parameters; those of items are matched by original id.

    Items that the earlier model lacks keep their initial values, whatever their positions.

    Args:
        model: New, of the same kind; changed in place.
        vocabulary: Its items.
        bundle: The earlier model.

    Returns:
        Number of items that the earlier model has.
    """
    place_I = torch.from_numpy(bundle.vocabulary.positions(vocabulary.ids))
    known_I = place_I >= 0
    roles = roles_of(model)
    by_item = roles.encoder.keys() | roles.decoder.keys()
    earlier = dict(bundle.model.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in by_item:
                parameter[known_I] = earlier[name][place_I[known_I]]
            else:
                parameter.copy_(earlier[name])
    return int(known_I.sum())


def load_pretrained(runs: Sequence[str]) -> list[Bundle]:
    """Load the best models of some runs; raise `DistribError` where one has none."""
    return [load_bundle(Folder(run) / BUNDLE) for run in runs]


def pretrained_faults(bundles: Sequence[Bundle], config: ModelConfig, data: str) -> list[str]:
    """Return why a model cannot start from models of other kinds, if it cannot.

    Args:
        bundles: The other models.
        config: Configuration of the new model.
        data: Hash of its training data.

    Returns:
        Each fault with its remedy.
    """
    kinds, found = config.spec.starts_from, sorted(bundle.config.name for bundle in bundles)
    if found != sorted(kinds):
        needs = f"starts from one run of each of {list(kinds)}" if kinds else "starts from none"
        return [f"train.pretrained names runs of {found}, but model {config.name!r} {needs}"]
    others = [bundle for bundle in bundles if bundle.facts.data != data]
    if others:
        names = ", ".join(bundle.config.name for bundle in others)
        return [
            f"train.pretrained: {names} was trained on other data, so its rows are of other users; "
            "train it on data.prepared"
        ]
    try:
        start_from(config.build(bundles[0].vocabulary.catalog), config, bundles)
    except RuntimeError:
        return [
            f"train.pretrained: the widths of {' and '.join(kinds)} are not those of "
            f"{config.name!r}; make the widths of embeddings and layers equal"
        ]
    return []


def start_from(model: Model, config: ModelConfig, bundles: Sequence[Bundle]) -> None:
    """Copy the parameters of models of other kinds into a model, in place."""
    assert isinstance(model, StartsFromModels)  # checked before any worker starts
    by_name: dict[str, Model] = {bundle.config.name: bundle.model for bundle in bundles}
    model.start_from([by_name[name] for name in config.spec.starts_from])
