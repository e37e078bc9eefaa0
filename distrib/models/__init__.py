"""The models, one file each; the union below lists those that a run file can name.

Other packages add theirs by an entry point; see `distrib.models.plugins`.
"""

from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from distrib.models.autoencoders.autorec import AutoRecConfig
from distrib.models.autoencoders.conv4rec import Conv4RecConfig
from distrib.models.autoencoders.elsa import ElsaConfig
from distrib.models.autoencoders.mult_vae import MultDaeConfig, MultVaeConfig
from distrib.models.autoencoders.rec_vae import RecVaeConfig
from distrib.models.autoencoders.vae_bmf import VaeBmfConfig
from distrib.models.ncf.conv_ncf import ConvNcfConfig
from distrib.models.ncf.gmf import GmfConfig
from distrib.models.ncf.mlp import MlpConfig
from distrib.models.ncf.neumf import NeuMfConfig
from distrib.models.plugins import installed_models
from distrib.models.sequential.deep_fm import DeepFmConfig
from distrib.models.sequential.gru4rec import Gru4RecConfig
from distrib.models.sequential.sas_rec import SasRecConfig
from distrib.models.sequential.youtube_dnn import YoutubeDnnConfig
from distrib.models.shallow.biased_mf import BiasedMfConfig
from distrib.models.shallow.ease import EaseConfig
from distrib.models.shallow.item_knn import ItemKnnConfig
from distrib.models.shallow.popularity import PopularityConfig

_Shipped = (
    AutoRecConfig
    | BiasedMfConfig
    | Conv4RecConfig
    | ConvNcfConfig
    | DeepFmConfig
    | EaseConfig
    | ElsaConfig
    | GmfConfig
    | Gru4RecConfig
    | ItemKnnConfig
    | MlpConfig
    | MultDaeConfig
    | MultVaeConfig
    | NeuMfConfig
    | PopularityConfig
    | RecVaeConfig
    | SasRecConfig
    | VaeBmfConfig
    | YoutubeDnnConfig
)

if TYPE_CHECKING:
    ModelConfig = Annotated[_Shipped, Field(discriminator="name")]
else:
    ModelConfig = Annotated[
        Union[(_Shipped, *installed_models())],
        Field(discriminator="name"),
    ]
    """Settings of a model, selected by ``name``; those of other packages, too."""
