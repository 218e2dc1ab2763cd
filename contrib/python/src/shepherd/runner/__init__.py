"""Write a runner: a function, or a class, that processes one job.

A function is enough for most models::

    from shepherd.runner import serve

    def predict(job):
        job.progress(0.5, "thinking")
        job.output.write_bytes(job.input.read_bytes().upper())

    if __name__ == "__main__":
        serve(predict)

A model that takes long to load is loaded before ``serve`` is called: a runner that
can be connected to is ready. Classes inherit from :class:`BaseRunner` and are run by
the command ``shepherd-runner``.
"""
from .base_runner import BaseRunner, n_available_gpus
from .json_runner import JSONRunner, run, to_json_serializable
from .serving import Cancelled, Job, parse_args, serve

__all__ = [
    "BaseRunner", "JSONRunner", "to_json_serializable", "run", "n_available_gpus", "serve", "Job", "Cancelled", "parse_args",
]
