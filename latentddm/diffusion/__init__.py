"""The process and how to run it backwards: tensors in, tensors out."""
