"""Hands a job to a cluster: to a Ray address, or to Kubernetes as a RayJob."""
