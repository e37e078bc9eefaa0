"""Rating logs of any format: detect, read in pieces, validate. Must not import Ray."""
