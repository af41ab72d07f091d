"""What a run would need of a machine that is not there: ``python -m one4d_jax.plan``."""
