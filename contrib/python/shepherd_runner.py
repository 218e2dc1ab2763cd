"""Write a runner for shepherd in Python: a function that processes one job.

    from shepherd_runner import serve

    def predict(job):
        job.output.write_bytes(job.input.read_bytes().upper())

    if __name__ == "__main__":
        serve(predict)

A model that takes long to load is loaded before serve is called: a runner that
can be connected to is ready. Needs pyzmq and Python 3.7 or later, nothing else;
copy the file or install it, as you like.
"""
import argparse
import collections
import json
import logging
import os
import re
import signal
import sys
import traceback
from pathlib import Path

import zmq

__all__ = ["Job", "parse_args", "serve"]

DEFAULT_PORT = 9999

log = logging.getLogger("shepherd_runner")

_MAX_MESSAGE = 4 << 20  # bytes, either way
_MAX_MESSAGE_TEXT = 64 << 10  # characters of an error that are told
_MAX_TRACEBACK = 256 << 10
_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Job:
    """One job: its inputs are complete, its output directory is there and empty.

    Every file below outputs, at any depth, becomes a result. traceparent and
    tracestate (W3C Trace Context) are what the run is called in the job's trace,
    None where it is in none.
    """

    def __init__(self, id, inputs, outputs, traceparent=None, tracestate=None):
        self.id = id
        self.inputs = Path(inputs)
        self.outputs = Path(outputs)
        self.traceparent = traceparent
        self.tracestate = tracestate

    @property
    def input(self):
        """Path of the default input, the payload of the job's request."""
        return self.inputs / "input"

    @property
    def output(self):
        """Path of the default output, the result a client gets unless it names one."""
        return self.outputs / "output"

    def __repr__(self):
        return "Job(%r)" % self.id


def parse_args(argv=None):
    """Read a runner's command line: [-p PORT] [-s STREAM] [-r RUNNER] [CONFIG_PATH].

    It is the one that shepherd starts runners with. The result has port, stream,
    runner and config_path, which is None where it was left out.
    """
    parser = argparse.ArgumentParser(description="Process shepherd's jobs.")
    parser.add_argument("-p", "--port", type=int, default=DEFAULT_PORT, help="port to listen on (%(default)s)")
    parser.add_argument("-s", "--stream", default="predict", help="name of the data stream (%(default)s)")
    parser.add_argument("-r", "--runner", default=None, help="accepted and not used")
    parser.add_argument("config_path", nargs="?", default=None, help="the model's configuration")
    return parser.parse_args(argv)


def serve(process, port=None, host=None):
    """Bind the runner's socket and call process(job) for one job after another.

    The port is that of the command line where it is not given, and the host
    that of the variable SHEPHERD_RUNNER_HOST, or all addresses. What process
    raises fails the job and is told to its client; the runner goes on. SIGTERM
    and Ctrl-C end serve, and the job under way with it. Call it in the main
    thread.
    """
    if port is None:
        port = parse_args().port
    if host is None:
        host = os.environ.get("SHEPHERD_RUNNER_HOST") or "0.0.0.0"
    before = signal.signal(signal.SIGTERM, _stop)
    context = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    try:
        socket.setsockopt(zmq.IDENTITY, b"runner")
        socket.setsockopt(zmq.MAXMSGSIZE, _MAX_MESSAGE)
        socket.setsockopt(zmq.LINGER, 1000)  # ms for answers that are not out yet
        socket.bind("tcp://%s:%d" % (host, port))
        log.info("waiting for jobs on port %d", port)
        _Server(socket, process).run()
    except (_Stop, KeyboardInterrupt):
        log.info("stopping")
    finally:
        socket.close()
        context.term()
        signal.signal(signal.SIGTERM, before)


class _Stop(BaseException):
    """SIGTERM came."""


def _stop(signum, frame):
    raise _Stop


class _Server:
    def __init__(self, socket, process):
        self.socket = socket
        self.process = process
        self.waiting = collections.OrderedDict()  # job id -> (Job, those who asked for it)

    def run(self):
        while True:
            if not self.waiting:
                self.take(self.socket.recv_multipart())
                continue
            job_id, (job, askers) = next(iter(self.waiting.items()))
            answer = self.answer_to(job)
            # Whoever asked again meanwhile is answered too; the job is not run
            # twice.
            while self.socket.poll(0):
                self.take(self.socket.recv_multipart())
            del self.waiting[job_id]
            for asker in askers:
                self.socket.send_multipart([asker, answer])

    def take(self, frames):
        """Note the job that a message brings, if it brings one."""
        try:
            asker, frame = frames
            message = json.loads(frame.decode("utf-8"))["message"]
            if message["message_type"] != "InputMessage":
                raise ValueError("message type %r" % (message["message_type"],))
            job_id, root = message["job_id"], message["io_data_root"]
            if not isinstance(root, str) or not _JOB_ID.fullmatch(job_id) or ".." in job_id:
                raise ValueError("job id %r" % (job_id,))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            log.warning("ignored a message: %s: %s", type(error).__name__, error)
            return
        if job_id not in self.waiting:
            place = os.path.join(root, job_id)
            job = Job(job_id, os.path.join(place, "inputs"), os.path.join(place, "outputs"), *_trace(place))
            self.waiting[job_id] = (job, [])
        askers = self.waiting[job_id][1]
        if asker not in askers:
            askers.append(asker)

    def answer_to(self, job):
        log.info("job %s begins", job.id)
        try:
            self.process(job)
        except (_Stop, KeyboardInterrupt):
            raise
        except BaseException as error:  # sys.exit() in a model, too, fails the job only
            log.exception("job %s failed", job.id)
            return _encode(
                job_id=job.id,
                message_type="ErrorMessage",
                message=("%s: %s" % (type(error).__name__, error))[:_MAX_MESSAGE_TEXT],
                exception_type=str(type(error)),
                exception_traceback="".join(traceback.format_exception(type(error), error, error.__traceback__))[-_MAX_TRACEBACK:],
            )
        log.info("job %s done", job.id)
        return _encode(job_id=job.id, message_type="DoneMessage")


def _trace(place):
    """Read the job's traceparent and tracestate, where shepherd left them."""
    try:
        with open(os.path.join(place, ".traceparent"), encoding="ascii", errors="replace") as f:
            lines = f.read().split("\n")
    except OSError:
        return None, None
    return lines[0] or None, (lines[1] if len(lines) > 1 else "") or None


def _encode(**message):
    return json.dumps({"message": dict(identity="", **message)}).encode("ascii")


def _example(job):
    job.output.write_bytes(job.input.read_bytes().upper())


if __name__ == "__main__":  # answers each job with its input in capitals
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    serve(_example)
