"""Latent-imagination agents in JAX."""
