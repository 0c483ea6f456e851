"""Patches of reinforcement learning: flat positions and absolute values on a base, read as a model."""
