"""Our networks, read through the converter, against diffusers and transformers on the same random weights."""
