"""A rating log, whatever its format: found out, read in pieces, checked. Knows no Ray."""
