"""A log to histories, on Ray."""
