"""Inference with a trained run: its generator, and the space of its latents."""
