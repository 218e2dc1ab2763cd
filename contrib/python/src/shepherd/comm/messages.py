"""The messages, one JSON object each: ``{"message": {...}}``."""
import json
from typing import Any, Dict, List, Mapping, Optional, Tuple, Type

from ..errors.comm import MessageError

__all__ = [
    "Message", "InputMessage", "DoneMessage", "ErrorMessage", "EventMessage", "CancelMessage", "encode_message", "decode_message",
]


class Message:
    """A message; its fields may be given as a mapping, by keyword, or set later."""

    _fields: Tuple[str, ...] = ()
    _optional: Tuple[str, ...] = ()

    def __init__(self, fields: Optional[Mapping[str, Any]] = None, **more: Any) -> None:
        given = dict(fields or {}, **more)
        self.identity: Any = given.pop("identity", "")
        self.job_id: Optional[str] = given.pop("job_id", None)
        given.pop("message_type", None)
        for name in self._fields + self._optional:
            setattr(self, name, given.pop(name, None))
        if given:
            raise MessageError("%s has no field %s" % (self.message_type, ", ".join(sorted(given))))

    @property
    def message_type(self) -> str:
        """Name of the message's class, as it is sent."""
        return type(self).__name__

    def to_primitive(self) -> Dict[str, Any]:
        """Return the message as it is sent."""
        identity = self.identity if isinstance(self.identity, str) else ""
        out: Dict[str, Any] = {"identity": identity, "job_id": self.job_id, "message_type": self.message_type}
        for name in self._fields:
            out[name] = getattr(self, name)
        for name in self._optional:
            if getattr(self, name) is not None:
                out[name] = getattr(self, name)
        return out

    def validate(self) -> None:
        """Raise :class:`MessageError` where a field is not a string."""
        for name in ("job_id",) + self._fields:
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise MessageError("%s: %s is not a string" % (self.message_type, name))

    def __repr__(self) -> str:
        return "%s(%r)" % (self.message_type, self.to_primitive())


class InputMessage(Message):
    """A job's inputs are ready below ``io_data_root``."""

    _fields = ("io_data_root",)
    io_data_root: Optional[str]


class DoneMessage(Message):
    """A job is done."""


class ErrorMessage(Message):
    """A job has failed."""

    _fields = ("message", "exception_type", "exception_traceback")
    message: Optional[str]
    exception_type: Optional[str]
    exception_traceback: Optional[str]


class EventMessage(Message):
    """Something happened to the job under way: ``accepted``, ``progress`` or ``log``."""

    _fields = ("event",)
    _optional = ("progress", "text", "features")
    event: Optional[str]
    progress: Optional[float]
    text: Optional[str]
    features: Optional[List[str]]


class CancelMessage(Message):
    """The job under way is to be given up."""


_CLASSES: Dict[str, Type[Message]] = {
    c.__name__: c for c in (Message, InputMessage, DoneMessage, ErrorMessage, EventMessage, CancelMessage)
}


def encode_message(message: Message) -> bytes:
    """Return the bytes of a message."""
    message.validate()
    return json.dumps({"message": message.to_primitive()}).encode("ascii")


def decode_message(value: bytes) -> Message:
    """Read a message. Fields that are not known are ignored.

    :raise MessageError: what is read is not a message
    """
    try:
        fields = json.loads(value.decode("utf-8"))["message"]
        known = _CLASSES[fields["message_type"]]
        names = ("identity", "job_id") + known._fields + known._optional
        message = known({name: fields[name] for name in names if name in fields})
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise MessageError("not a message: %s: %s" % (type(error).__name__, error)) from error
    message.validate()
    return message
