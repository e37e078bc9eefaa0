"""Scoring: recommendations from a bundle and user histories."""
