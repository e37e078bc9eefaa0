"""Models that read histories in time order and predict the next item."""
