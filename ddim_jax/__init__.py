"""Denoising diffusion of scenes: training, DDIM sampling, and how good the pictures are."""
