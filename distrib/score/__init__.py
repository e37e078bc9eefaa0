"""From a bundle and histories to recommendations."""
