"""What runs on Ray Train: driver, workers, agreement between ranks."""
