"""cxrbench: a multi-task benchmark suite for chest X-ray deep learning."""

__version__ = "0.1.0"
