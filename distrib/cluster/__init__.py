"""Cluster resources, actor pools and Prometheus gauges."""
