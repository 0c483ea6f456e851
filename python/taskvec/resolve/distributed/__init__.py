"""Distributed checkpoints of torch: read tensor by tensor, and laid out as safetensors."""
