"""Prepare: from a rating log to histories, on Ray."""
