"""What a run leaves behind: complete or invisible, verified before it is used."""
