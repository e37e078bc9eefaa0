"""Bulk scoring on Ray Data, exactly once per user."""
