"""Outputs recorded before a change of structure, and compared byte by byte after it."""
