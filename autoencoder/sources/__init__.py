"""Image sources, one module per kind; the registry is in registry.py."""
