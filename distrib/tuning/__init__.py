"""Hyper-parameter search over the fields of a run file."""
