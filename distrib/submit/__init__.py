"""Job submission: to a Ray address, or to Kubernetes as a RayJob."""
