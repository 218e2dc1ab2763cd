"""What shepherd and a runner say to each other."""
from .messages import CancelMessage, DoneMessage, ErrorMessage, EventMessage, InputMessage, Message
from .messenger import Messenger

__all__ = ["Message", "InputMessage", "DoneMessage", "ErrorMessage", "EventMessage", "CancelMessage", "Messenger"]
