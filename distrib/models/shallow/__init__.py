"""Linear, counted and factored models; the baselines."""
