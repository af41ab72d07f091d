"""One table of names per network."""
