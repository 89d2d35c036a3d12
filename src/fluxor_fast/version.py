"""The version, for who may not import the application beside it."""

__all__ = ["__version__"]

__version__ = "0.1.0"
