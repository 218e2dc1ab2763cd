"""The command ``shepherd-runner``."""
import asyncio
import importlib
import logging
import os
import re
import signal
import sys
from typing import Any, Optional, Sequence

from .serving import Stop, create_argparser, stop_on_signal

__all__ = ["main", "create_argparser"]

RUNNER_CONFIG = "runner.yaml"


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Make the runner that the command line and ``runner.yaml`` name and process jobs.

    ``runner.yaml`` beside the model's configuration names the class, as
    ``runner: {class: package.module.Class}``; it goes before the command line.
    """
    sys.path.insert(0, os.getcwd())
    logging.basicConfig(level=logging.DEBUG, format="%(asctime)s.%(msecs)06d: %(levelname)-8s@%(module)-12s: %(message)s", datefmt="%Y-%m-%d %H:%M:%S")
    args = create_argparser(config_required=True).parse_args(argv)
    directory = os.path.dirname(args.config_path) if os.path.isfile(args.config_path) else args.config_path
    name = args.runner
    path = os.path.join(directory, RUNNER_CONFIG)
    if os.path.exists(path):
        logging.info("Using the runner that %s names", path)
        name = read_class(path)
    runner = load_class(name)(args.config_path, args.port, args.stream)
    signal.signal(signal.SIGTERM, stop_on_signal)

    async def process() -> None:
        # asyncio's handler makes signals wake its loop, also one that comes just before
        # the loop waits; ours is what is called.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: None)
        signal.signal(signal.SIGTERM, stop_on_signal)
        await runner.process_all()

    try:
        asyncio.run(process())
    except (Stop, KeyboardInterrupt):
        logging.info("Stopping")


def load_class(name: str) -> Any:
    """Return the class with a name such as ``package.module.Class``."""
    module, _, attribute = name.rpartition(".")
    if not module:
        raise ValueError("`%s` is not the name of a class with its module" % name)
    return getattr(importlib.import_module(module), attribute)


def read_class(path: str) -> str:
    """Return the ``runner.class`` of a runner.yaml."""
    with open(path, encoding="utf-8") as f:
        text = f.read()
    try:
        import yaml
    except ImportError:
        found = re.search(r"^runner\s*:\s*(?:\{\s*|\n\s+)class\s*:\s*['\"]?([\w.]+)", text, re.MULTILINE)
        if found is None:
            raise ValueError("%s: expected `runner: {class: package.module.Class}`; install PyYAML for more than that" % path)
        return found.group(1)
    try:
        return str(yaml.safe_load(text)["runner"]["class"])
    except (KeyError, TypeError):
        raise ValueError("%s: expected `runner: {class: package.module.Class}`" % path)


if __name__ == "__main__":
    main()
