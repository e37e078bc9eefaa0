"""Feeds from histories to batches: the same global batches for any number of ranks."""
