"""Every user's list, exactly once, on Ray Data."""
