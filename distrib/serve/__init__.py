"""Online serving: the scorer behind HTTP, with request batching on Ray Serve."""
