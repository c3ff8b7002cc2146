"""A trained run in use: load it, draw latents, know their space."""
