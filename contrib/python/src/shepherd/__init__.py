"""Runners for shepherd: see :mod:`shepherd.runner`."""

__version__ = "1.0.0"

__all__ = ["__version__"]
