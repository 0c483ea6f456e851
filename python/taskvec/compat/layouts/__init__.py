"""Layouts: one model's tensors under the names and in the shapes of another's."""
