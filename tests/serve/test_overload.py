"""A server under more than it can answer."""
