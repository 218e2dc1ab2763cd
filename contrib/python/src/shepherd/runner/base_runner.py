"""The class that runners inherit from."""
import logging
import os
import re
import traceback
from typing import Any, Dict, Optional

import zmq
import zmq.asyncio

from .serving import Job, Server, bind

__all__ = ["BaseRunner", "n_available_gpus"]


def n_available_gpus() -> int:
    """Return how many of NVIDIA's GPUs this process may use.

    That is what CUDA_VISIBLE_DEVICES lists, or else NVIDIA_VISIBLE_DEVICES unless it
    is ``all``, or else the GPUs in ``/dev``.
    """
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        devices = os.environ["CUDA_VISIBLE_DEVICES"]
    elif "NVIDIA_VISIBLE_DEVICES" in os.environ and os.environ["NVIDIA_VISIBLE_DEVICES"].strip() != "all":
        devices = os.environ["NVIDIA_VISIBLE_DEVICES"]
    else:
        devices = ",".join(name for name in os.listdir("/dev") if re.search(r"nvidia[0-9]+", name))
    if devices.strip() in ("", "void", "none"):  # NVIDIA's words for no GPU
        return 0
    return len(devices.split(","))


def _emloop() -> Any:
    try:
        import emloop
    except ImportError as error:
        raise ImportError(
            "this runner loads its model with emloop, which is not installed: pip install emloop, "
            "or load the model yourself and do not call _load_config, _load_dataset or _load_model"
        ) from error
    return emloop


class BaseRunner:
    """A runner of the model that a configuration describes.

    Inherit from it and override :meth:`_process_job`. The methods ``_load_…`` are for
    models of emloop, and need that; nothing else does.
    """

    def __init__(self, config_path: str, port: int, stream_name: str) -> None:
        """Make a runner of the model at ``config_path`` that will listen on ``port``."""
        logging.info("Creating runner from `%s` listening on port %s", config_path, port)
        self._port = port
        self._socket: Any = None
        self._config_path = config_path
        self._stream_name = stream_name
        self._config: Optional[Dict[str, Any]] = None
        self._dataset: Any = None
        self._model: Any = None
        self._job: Optional[Job] = None

    def _load_config(self) -> None:
        """Load emloop's configuration, with the section ``eval.STREAM`` applied, once."""
        if self._config is not None:
            return
        _emloop()
        from emloop.cli.util import find_config, validate_config
        from emloop.utils import load_config

        config = load_config(config_file=find_config(self._config_path))
        if "eval" in config and self._stream_name in config["eval"]:
            update = config["eval"][self._stream_name]
            for section in ("dataset", "model", "main_loop"):
                if section in update:
                    config[section].update(update[section])
            if "hooks" not in update:
                logging.warning("The configuration has no `eval.%s.hooks`: no hook is used.", self._stream_name)
            config["hooks"] = update.get("hooks", [])
        config["model"]["n_gpus"] = n_available_gpus()
        validate_config(config)
        self._config = config

    def _load_dataset(self) -> None:
        """Make emloop's dataset, once."""
        if self._dataset is None:
            self._load_config()
            self._dataset = _emloop().create_dataset(self._config, None)

    def _load_model(self) -> None:
        """Make emloop's model, restored from the configuration's directory, once."""
        if self._model is None:
            self._load_config()
            directory = self._config_path if os.path.isdir(self._config_path) else os.path.dirname(self._config_path)
            self._model = _emloop().create_model(self._config, None, self._dataset, directory)

    def _process_job(self, input_path: str, output_path: str) -> None:
        """Process the inputs in one directory and write the results to another.

        What it raises fails the job. Override it.
        """
        raise NotImplementedError("override _process_job")

    def progress(self, done: float, text: str = "") -> None:
        """Tell how much of the job under way is done, from 0 to 1, and at what it is."""
        if self._job is not None:
            self._job.progress(done, text)

    @property
    def cancelled(self) -> bool:
        """Whether the job under way is to be given up."""
        return self._job is not None and self._job.cancelled

    def _process(self, job: Job) -> None:
        self._job = job
        try:
            self._process_job(str(job.inputs), str(job.outputs))
        finally:
            self._job = None

    async def process_all(self) -> None:
        """Bind the socket and process jobs until the task is cancelled."""
        socket = zmq.Context.instance().socket(zmq.ROUTER)
        try:
            bind(socket, self._port)
            self._socket = zmq.asyncio.Socket.from_socket(socket)
            server = Server(socket, self._process, _lines_of)
            while True:
                server.take(await self._socket.recv_multipart())
                server.work()
        finally:
            if self._socket is not None:
                self._socket.close(0)
            socket.close(0)


def _lines_of(error: BaseException) -> str:
    """A traceback as clients of the original have it."""
    return str(traceback.format_tb(error.__traceback__))
