"""From rating logs to sharded user histories, and from histories to batches."""
