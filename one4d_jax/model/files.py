"""What a bundle's folder holds, for those who look without loading: no JAX here. ``bundle.py`` reads and writes it."""

import pathlib

PARTS = ('vae', 'base', 'text', 'image', 'adapters')  # one safetensors file each
EMBEDDED = pathlib.Path(__file__).parent.parent / 'assets' / 'tiny'
