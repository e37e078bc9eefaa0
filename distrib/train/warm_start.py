"""Warm start: initialize a model from an earlier one, on a catalog that has grown since."""

import torch

from distrib.checkpoint.bundle import Bundle
from distrib.models import ModelConfig
from distrib.models.base import Model
from distrib.parameters import roles_of
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
