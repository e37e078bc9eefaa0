"""Models of other packages, which name their configuration in an entry point.

In their ``pyproject.toml``::

    [project.entry-points."distrib.models"]
    my_model = "my_package.my_model:MyModelConfig"
"""

from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, get_origin

from distrib.config import Config
from distrib.errors import ConfigError
from distrib.models.base import ModelSpec

GROUP = "distrib.models"


def installed_models() -> tuple[type[Config], ...]:
    """Find the models that other packages add.

    Returns:
        Their configurations.

    Raises:
        ConfigError: One cannot be imported, or is not the configuration of a model.
    """
    return tuple(_loaded(one) for one in sorted(entry_points(group=GROUP), key=lambda e: e.name))


def _loaded(one: EntryPoint) -> type[Config]:
    package = one.dist.name if one.dist else "a package"
    where = f"entry point {one.name} = {one.value!r} of {package}"
    try:
        found: Any = one.load()
    except Exception as error:  # anything may happen in a module of others
        raise ConfigError(f"{where}: cannot be imported ({error}); repair or remove it") from error
    is_config = isinstance(found, type) and issubclass(found, Config)
    name = found.model_fields.get("name") if is_config else None
    is_named = name is not None and get_origin(name.annotation) is Literal
    has_parts = isinstance(getattr(found, "spec", None), ModelSpec | property)
    if not is_named or not has_parts or not callable(getattr(found, "build", None)):
        raise ConfigError(
            f"{where}: is not the configuration of a model: a Config with a literal name, a "
            "ModelSpec spec, and build(catalog)"
        )
    return found  # type: ignore[no-any-return]
