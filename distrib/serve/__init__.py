"""The scorer behind HTTP: what may be asked, how askers share a batch, who answers."""
