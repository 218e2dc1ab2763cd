"""Errors of this package."""
