"""The diffusers face: pipeline, scheduler, exported folders."""
