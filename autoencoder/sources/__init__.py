"""One module for each place that images come from; `autoencoder.images.open_source` chooses."""
