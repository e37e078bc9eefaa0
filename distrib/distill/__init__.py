"""Soft labels: users are embedded and clustered, and their labels propagated inside clusters."""
