"""Latent dynamics and what they are trained on."""
