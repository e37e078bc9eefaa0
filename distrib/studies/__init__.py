"""Studies: many runs from one file, compared with honest statistics."""
