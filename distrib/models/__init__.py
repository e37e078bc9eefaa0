"""The models, one file each; the union below is the list of those that a run file can name."""

from typing import Annotated

from pydantic import Field

from distrib.models.conv4rec import Conv4RecConfig
from distrib.models.mult_vae import MultVaeConfig

ModelConfig = Annotated[Conv4RecConfig | MultVaeConfig, Field(discriminator="name")]
