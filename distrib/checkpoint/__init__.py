"""Checkpoints and bundles: atomic writes, content verified on read."""
