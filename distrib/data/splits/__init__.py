"""Which user trains, and what is held out; pure functions of tables."""
