"""The models, one file each; the union below is the list of those that a run file can name."""

from typing import Annotated

from pydantic import Field

from distrib.models.autorec import AutoRecConfig
from distrib.models.biased_mf import BiasedMfConfig
from distrib.models.conv4rec import Conv4RecConfig
from distrib.models.ease import EaseConfig
from distrib.models.elsa import ElsaConfig
from distrib.models.mult_vae import MultDaeConfig, MultVaeConfig
from distrib.models.neighbours import ItemKnnConfig
from distrib.models.popularity import PopularityConfig
from distrib.models.rec_vae import RecVaeConfig
from distrib.models.vae_bmf import VaeBmfConfig

ModelConfig = Annotated[
    AutoRecConfig
    | BiasedMfConfig
    | Conv4RecConfig
    | EaseConfig
    | ElsaConfig
    | ItemKnnConfig
    | MultDaeConfig
    | MultVaeConfig
    | PopularityConfig
    | RecVaeConfig
    | VaeBmfConfig,
    Field(discriminator="name"),
]
"""What is asked of a model; no behaviour of its own."""
