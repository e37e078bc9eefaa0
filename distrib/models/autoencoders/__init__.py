"""Models that encode histories and decode items."""
