"""Pixels to latents and back: image sources, autoencoders, the latent store, decoding."""
