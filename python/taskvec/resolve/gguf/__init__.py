"""GGUF files: decoded tensor by tensor, and laid out as safetensors under transformers' names."""
