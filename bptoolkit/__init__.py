"""bptoolkit: static and recurrent backpropagation on JAX, and measurements of what networks forget."""

__version__ = "0.1.0"
