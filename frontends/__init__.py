"""Frontends: a graph as a trainable model of PyTorch, TensorFlow or JAX."""
