"""Send and receive messages by asyncio sockets."""
from typing import Any, Optional, Sequence

import zmq
import zmq.asyncio
from zmq.error import ZMQBaseError

from ..errors.comm import MessageError, UnexpectedMessageTypeError
from .messages import Message, decode_message, encode_message

__all__ = ["Messenger"]


class Messenger:
    """Static methods that send and receive one message."""

    @staticmethod
    async def send(socket: Any, message: Message, response_to: Optional[Message] = None) -> None:
        """Send a message, to whom an earlier one came from where that is given.

        :raise TypeError: it is not a message
        :raise MessageError: it cannot be sent
        """
        if not isinstance(message, Message):
            raise TypeError("`%s` is not a message" % type(message))
        frames = [encode_message(message)]
        if response_to is not None and response_to.identity != "":
            frames.insert(0, response_to.identity)
        try:
            await socket.send_multipart(frames)
        except ZMQBaseError as error:
            raise MessageError("Failed to send message") from error

    @staticmethod
    async def recv(socket: Any, expected_message_types: Optional[Sequence[type]] = None, noblock: bool = False) -> Any:
        """Receive a message; its ``identity`` is the peer's on a ROUTER.

        :raise MessageError: nothing can be received, or it is not a message
        :raise UnexpectedMessageTypeError: it is of another type than expected
        """
        identity: Any = ""
        try:
            frames = await socket.recv_multipart(flags=zmq.NOBLOCK if noblock else 0)
        except ZMQBaseError as error:
            raise MessageError("Failed to receive message") from error
        if socket.type == zmq.ROUTER:
            identity, frames = frames[0], frames[1:]
        if len(frames) != 1:
            raise MessageError("not a message: it has %d frames" % len(frames))
        message = decode_message(frames[0])
        message.identity = identity
        if expected_message_types is not None and type(message) not in expected_message_types:
            raise UnexpectedMessageTypeError(
                "Unexpected message type `%s`. Expected message types are %s." % (message.message_type, expected_message_types)
            )
        return message
