"""Searches that train weights and architecture together."""
