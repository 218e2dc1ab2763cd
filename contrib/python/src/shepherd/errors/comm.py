"""Errors of :mod:`shepherd.comm`."""

__all__ = ["MessageError", "UnexpectedMessageTypeError"]


class MessageError(ValueError):
    """A message could not be sent, received or understood."""


class UnexpectedMessageTypeError(MessageError):
    """A message was of another type than expected."""
