"""What can be known before any worker starts."""
