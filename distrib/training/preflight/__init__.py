"""Checks and estimates before any worker starts."""
