"""One update, whatever computes it."""
