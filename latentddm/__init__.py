"""latentddm: few-step latent image generators from a folder of pictures, with no teacher."""

__version__ = "0.1.0"
