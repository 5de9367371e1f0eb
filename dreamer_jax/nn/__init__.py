"""Flax modules, and nothing but modules."""
