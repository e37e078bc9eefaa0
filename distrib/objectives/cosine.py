"""Cosine loss of a linear autoencoder with tied weights, without its output."""

from typing import ClassVar, Literal

from torch import Tensor

from distrib.batch import Batch
from distrib.config import Config
from distrib.objectives.base import Defaults, LossContext, ObjectiveSpec
from distrib.objectives.decoder import Decoder, Tensors, TiedLinear
from distrib.vocabulary import Catalog

_SMALLEST = 1e-6


class CosineConfig(Config):
    """The cosine loss has no settings."""

    name: Literal["cosine"] = "cosine"

    spec: ClassVar[ObjectiveSpec] = ObjectiveSpec("scores", needs_tied=True, decodes_inputs=True)

    def build(self, catalog: Catalog) -> "Cosine":
        """Make the objective."""
        del catalog
        return Cosine()


class Cosine(Defaults):
    """1 - cos(x A A^T - x, x) of each user, from x A and A^T A alone.

    With z = x A for a binary history of n items and M = A^T A, rows of A of unit length, the
    product of output and input is z.z - n, and the squared length of the output z M z - 2 z.z + n:
    no item is decoded, so a step costs O(interactions Z + items Z^2). Its gradient is that of the
    normalized squared error of the source, up to a factor of 2 / items.

    Source: "Scalable Linear Shallow Autoencoder for Collaborative Filtering", RecSys 2022 (the
    loss); the identities follow from the unit rows.
    """

    terms = ("cosine",)
    is_by_row = True

    def __call__(
        self, model: Decoder, users: Tensors, target: Batch, context: LossContext
    ) -> Tensor:
        """Compute the loss from latents and Gram matrix; see `Objective`."""
        del context
        assert isinstance(model, TiedLinear)  # others are rejected before any worker starts
        return self.latent_terms(users[0], model.item_gram(), target)

    def latent_terms(self, latent_BZ: Tensor, gram_ZZ: Tensor, target: Batch) -> Tensor:
        """Return the loss of each user.

        Args:
            latent_BZ: x A.
            gram_ZZ: A^T A, float32.
            target: The histories; also what was encoded.

        Returns:
            float32 ``[1, B]``, 0..2; 1 for a history of a single item, and for an empty one.
        """
        exact_BZ, length_B = latent_BZ.float(), target.length_B.float()
        # z.z - n = (x A A^T - x) . x, and z M z - 2 z.z + n = |x A A^T - x|^2; n = |x|^2.
        own_B = exact_BZ.square().sum(1)
        square_B = ((exact_BZ @ gram_ZZ) * exact_BZ).sum(1) - 2.0 * own_B + length_B
        scale_B = (square_B.clamp(min=_SMALLEST) * length_B.clamp(min=1.0)).rsqrt()
        return (1.0 - (own_B - length_B) * scale_B)[None]
