"""How good a model is: over the full catalogue, every user counted, with errors."""
