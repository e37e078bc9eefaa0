"""Evaluation of models over the full catalog and all users, with standard errors."""
