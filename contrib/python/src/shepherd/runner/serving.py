"""The loop of a runner: take a job, process it, answer."""
import argparse
import collections
import logging
import os
import re
import signal
import time
import traceback
from pathlib import Path
from typing import Any, Callable, List, Optional, Sequence, Tuple

import zmq

from ..comm.messages import CancelMessage, DoneMessage, ErrorMessage, EventMessage, InputMessage, Message, decode_message, encode_message
from ..constants import DEFAULT_OUTPUT_FILE, DEFAULT_PAYLOAD_FILE, INPUT_DIR, OUTPUT_DIR
from ..errors.comm import MessageError

__all__ = ["Job", "Cancelled", "parse_args", "serve"]

DEFAULT_PORT = 9999

EXIT_LOAD = 78
"""Exit status that says, before the socket is bound, that the model cannot be loaded."""

log = logging.getLogger("shepherd.runner")

_MAX_MESSAGE = 4 << 20  # bytes, either way
_MAX_MESSAGE_TEXT = 64 << 10  # characters of an error that are told
_MAX_TRACEBACK = 256 << 10
_MAX_EVENT_TEXT = 1000
_PROGRESS_INTERVAL = 0.1  # seconds
_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Cancelled(Exception):
    """The job was cancelled; raised by :meth:`Job.check_cancelled`."""


class Job:
    """One job: its inputs are complete, its output directory is there and empty.

    Every file below ``outputs``, at any depth, becomes a result. ``traceparent`` and
    ``tracestate`` (W3C Trace Context) are what the run is called in the job's trace,
    None where it is in none.
    """

    def __init__(
        self, id: str, inputs: Any, outputs: Any, traceparent: Optional[str] = None, tracestate: Optional[str] = None,
        server: "Optional[Server]" = None,
    ) -> None:
        self.id = id
        self.inputs = Path(inputs)
        self.outputs = Path(outputs)
        self.traceparent = traceparent
        self.tracestate = tracestate
        self._server = server
        self._cancelled = False
        self._told = 0.0

    @property
    def input(self) -> Path:
        """Path of the default input, the payload of the job's request."""
        return self.inputs / DEFAULT_PAYLOAD_FILE

    @property
    def output(self) -> Path:
        """Path of the default output, the result a client gets unless it names one."""
        return self.outputs / DEFAULT_OUTPUT_FILE

    def progress(self, done: float, text: str = "") -> None:
        """Tell how much of the job is done, from 0 to 1, and at what it is.

        It may be called as often as one likes. Call it in the thread that processes
        the job.
        """
        now = time.monotonic()
        if self._server is None or (now - self._told < _PROGRESS_INTERVAL and done < 1):
            return
        self._told = now
        self._server.tell(self, event="progress", progress=min(1.0, max(0.0, float(done))), text=text[:_MAX_EVENT_TEXT])

    def log(self, line: str) -> None:
        """Add a line to the job's log: print it, and tell whoever watches.

        What a runner prints while it has a job is that job's log. Call this in the
        thread that processes the job.
        """
        print(line, flush=True)
        if self._server is not None:
            self._server.tell(self, event="log", text=line[:_MAX_EVENT_TEXT])

    @property
    def cancelled(self) -> bool:
        """Whether the job is to be given up. Look in the thread that processes it."""
        if self._server is not None:
            self._server.listen()
        return self._cancelled

    def check_cancelled(self) -> None:
        """Raise :class:`Cancelled` where the job is to be given up."""
        if self.cancelled:
            raise Cancelled("the job was cancelled")

    def __repr__(self) -> str:
        return "Job(%r)" % self.id


def create_argparser(config_required: bool = False) -> argparse.ArgumentParser:
    """Return the parser of a runner's command line."""
    parser = argparse.ArgumentParser("shepherd-runner", description="Process shepherd's jobs.")
    parser.add_argument("-p", "--port", dest="port", type=int, default=DEFAULT_PORT, help="port to listen on (%(default)s)")
    parser.add_argument("-s", "--stream", default="predict", help="name of the dataset's stream (%(default)s)")
    parser.add_argument("-r", "--runner", default="shepherd.runner.JSONRunner", help="the runner's class, with its module (%(default)s)")
    parser.add_argument("config_path", nargs=None if config_required else "?", default=None, help="the model's configuration")
    return parser


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Read a runner's command line: ``[-p PORT] [-s STREAM] [-r RUNNER] [CONFIG_PATH]``.

    It is the one that shepherd starts runners with. The result has port, stream,
    runner and config_path, which is None where it was left out.
    """
    return create_argparser().parse_args(argv)


def serve(process: Callable[[Job], Any], port: Optional[int] = None, host: Optional[str] = None) -> None:
    """Bind the runner's socket and call ``process(job)`` for one job after another.

    The port is that of the command line where it is not given, and the host that of
    the variable SHEPHERD_RUNNER_HOST, or all addresses. What process raises fails the
    job and is told to its client; the runner goes on. SIGTERM and Ctrl-C end serve,
    and the job under way with it. Call it in the main thread.
    """
    if port is None:
        port = parse_args().port
    before = signal.signal(signal.SIGTERM, stop_on_signal)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    wake_before = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    context = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    try:
        bind(socket, port, host)
        Server(socket, process).run(woken)
    except (Stop, KeyboardInterrupt):
        log.info("stopping")
    finally:
        socket.close()
        context.term()
        signal.set_wakeup_fd(wake_before)
        os.close(wake)
        os.close(woken)
        signal.signal(signal.SIGTERM, before)


def bind(socket: Any, port: int, host: Optional[str] = None) -> None:
    """Bind a runner's ROUTER socket."""
    if host is None:
        host = os.environ.get("SHEPHERD_RUNNER_HOST") or "0.0.0.0"
    socket.setsockopt(zmq.IDENTITY, b"runner")
    socket.setsockopt(zmq.MAXMSGSIZE, _MAX_MESSAGE)
    socket.setsockopt(zmq.LINGER, 1000)  # ms for answers that are not out yet
    socket.bind("tcp://%s:%d" % (host, port))
    log.info("waiting for jobs on port %d", port)


class Stop(KeyboardInterrupt):
    """SIGTERM came. No handler of a model's errors catches it.

    It is a KeyboardInterrupt because asyncio keeps any other exception that a signal's
    handler raises in one of its callbacks, and goes on.
    """


def stop_on_signal(signum: int, frame: Any) -> None:
    """Raise :class:`Stop`, as a handler of a signal."""
    raise Stop


class Server:
    """A runner at work on a bound ROUTER socket. It belongs to one thread."""

    def __init__(self, socket: Any, process: Callable[[Job], Any], traceback_of: "Optional[Callable[[BaseException], str]]" = None) -> None:
        self.socket = socket
        self.process = process
        self.traceback_of = traceback_of or _whole_traceback
        self.events = "events" in os.environ.get("SHEPHERD_FEATURES", "").split()
        self.waiting: "collections.OrderedDict[str, Tuple[Job, List[bytes]]]" = collections.OrderedDict()
        self.current: Optional[Job] = None

    def run(self, woken: int) -> None:
        """Process jobs for ever.

        woken becomes readable with each signal: one that comes just before the wait
        begins would else be handled when the next message comes.
        """
        poller = zmq.Poller()
        poller.register(self.socket, zmq.POLLIN)
        poller.register(woken, zmq.POLLIN)
        while True:
            if woken in dict(poller.poll()):
                os.read(woken, 4096)  # its handler has run
            self.listen()
            self.work()

    def work(self) -> None:
        """Process the jobs that wait."""
        while self.waiting:
            job_id, (job, askers) = next(iter(self.waiting.items()))
            answer = self.answer_to(job)
            # Whoever asked again meanwhile is answered too; the job is not run
            # twice.
            self.listen()
            del self.waiting[job_id]
            for asker in askers:
                self.socket.send_multipart([asker, encode_message(answer)])

    def listen(self) -> None:
        """Take what has come, without waiting."""
        while self.socket.poll(0):
            self.take(self.socket.recv_multipart())

    def take(self, frames: List[bytes]) -> None:
        """Note the job that a message brings, or that one is to be given up."""
        try:
            asker, frame = frames
            message = decode_message(frame)
            job_id = message.job_id or ""
            if not _JOB_ID.fullmatch(job_id) or ".." in job_id:
                raise MessageError("job id %r" % (message.job_id,))
            if isinstance(message, CancelMessage):
                if self.current is not None and self.current.id == job_id:
                    self.current._cancelled = True
                return
            if not isinstance(message, InputMessage) or message.io_data_root is None:
                raise MessageError("message type %s" % message.message_type)
        except ValueError as error:  # MessageError is one
            log.warning("ignored a message: %s", error)
            return
        if job_id not in self.waiting:
            place = os.path.join(message.io_data_root, job_id)
            job = Job(job_id, os.path.join(place, INPUT_DIR), os.path.join(place, OUTPUT_DIR), *_trace(place), server=self)
            self.waiting[job_id] = (job, [])
        askers = self.waiting[job_id][1]
        if asker not in askers:
            askers.append(asker)

    def tell(self, job: Job, **event: Any) -> None:
        """Send an event to those who asked for the job under way."""
        if not self.events or job is not self.current:
            return
        frame = encode_message(EventMessage(job_id=job.id, **event))
        for asker in self.waiting[job.id][1]:
            self.socket.send_multipart([asker, frame])

    def answer_to(self, job: Job) -> Message:
        """Process a job and return what its client is told."""
        log.info("job %s begins", job.id)
        self.current = job
        self.tell(job, event="accepted", features=["cancel"])
        try:
            self.process(job)
        except (Stop, KeyboardInterrupt):
            raise
        except BaseException as error:  # sys.exit() in a model, too, fails the job only
            if job._cancelled:
                log.info("job %s given up", job.id)
                return ErrorMessage(
                    job_id=job.id, message="Cancelled: the job was cancelled", exception_type="Cancelled", exception_traceback="",
                )
            log.exception("job %s failed", job.id)
            return ErrorMessage(
                job_id=job.id,
                message=("%s: %s" % (type(error).__name__, error))[:_MAX_MESSAGE_TEXT],
                exception_type=str(type(error)),
                exception_traceback=self.traceback_of(error)[-_MAX_TRACEBACK:],
            )
        finally:
            self.current = None
        log.info("job %s done", job.id)
        return DoneMessage(job_id=job.id)


def _whole_traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))


def _trace(place: str) -> Tuple[Optional[str], Optional[str]]:
    """Read the job's traceparent and tracestate, where shepherd left them."""
    try:
        with open(os.path.join(place, ".traceparent"), encoding="ascii", errors="replace") as f:
            lines = f.read().split("\n")
    except OSError:
        return None, None
    return lines[0] or None, (lines[1] if len(lines) > 1 else "") or None
