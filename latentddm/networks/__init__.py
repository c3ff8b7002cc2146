"""Networks that map (x_t, t, xi or None, labels) to draws of x_0."""
