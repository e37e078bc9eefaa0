"""What we ask of Ray itself: resources, actors, gauges."""
