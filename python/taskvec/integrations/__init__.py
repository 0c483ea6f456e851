"""Where people already are: a callback of transformers' Trainer, a plugin and a command of axolotl.

Nothing is imported here; each module imports what it belongs to.
"""
