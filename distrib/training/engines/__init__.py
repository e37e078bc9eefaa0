"""Engines, which make the updates: local, DeepSpeed, item-parallel."""
