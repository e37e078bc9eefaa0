"""Histories to batches: the same global batches on any number of ranks."""
