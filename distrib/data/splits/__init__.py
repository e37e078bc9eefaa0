"""Train, validation and test splits; pure functions of tables."""
