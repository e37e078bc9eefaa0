"""One file for each format of a log: its configuration, its inspection, and its parser."""
