"""Run files as people write and read them: guessed from a log, shown, described, migrated."""
