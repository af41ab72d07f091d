"""Wan checkpoints to our trees. Imports ``one4d_jax``, never the reverse."""
