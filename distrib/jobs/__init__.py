"""Jobs: one module each, with a `Job` of what to check before Ray starts, and what to do."""
