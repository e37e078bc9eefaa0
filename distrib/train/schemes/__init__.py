"""How training reads the log."""
