"""A runner whose payload and result are JSON."""
import json
import logging
import os
from collections import defaultdict
from typing import Any, Dict, List

from ..constants import DEFAULT_OUTPUT_FILE, DEFAULT_PAYLOAD_FILE
from .base_runner import BaseRunner

__all__ = ["JSONRunner", "to_json_serializable", "run"]


def to_json_serializable(data: Any) -> Any:
    """Return data with numpy's arrays and scalars, and tuples, as JSON has them.

    :raise ValueError: there is something else in it
    """
    if data is None or isinstance(data, (str, bool, int, float)):
        return data
    if isinstance(data, dict):
        return {key: to_json_serializable(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [to_json_serializable(value) for value in data]
    if hasattr(data, "tolist"):  # of numpy, which need not be installed
        return data.tolist()
    raise ValueError("Unsupported JSON type `{}` (key `{}`)".format(type(data), data))


def run(model: Any, dataset: Any, stream_name: str, payload: Any) -> Dict[str, List[Any]]:
    """Run a model on the batches of a stream and return their results together.

    The dataset has a method ``STREAM_stream`` that makes batches of the payload and,
    where it likes, ``postprocess_batch``, which is given each input and output batch.
    """
    result: Dict[str, List[Any]] = defaultdict(list)
    for input_batch in getattr(dataset, stream_name + "_stream")(payload):
        logging.info("Another batch (%s)", list(input_batch.keys()))
        batch = model.run(input_batch, train=False, stream=None)
        if hasattr(dataset, "postprocess_batch"):
            batch = dataset.postprocess_batch(input_batch=input_batch, output_batch=batch)
        for source, value in batch.items():
            result[source] += list(value)
    return result


class JSONRunner(BaseRunner):
    """A runner of an emloop model: the payload is JSON for the dataset's stream, and
    the default output the batches' results as JSON."""

    def _process_job(self, input_path: str, output_path: str) -> None:
        """Read the payload, run the model on it and write the result."""
        self._load_dataset()
        self._load_model()
        with open(os.path.join(input_path, DEFAULT_PAYLOAD_FILE), encoding="utf-8") as f:
            payload = json.load(f)
        result = to_json_serializable(run(self._model, self._dataset, self._stream_name, payload))
        with open(os.path.join(output_path, DEFAULT_OUTPUT_FILE), "w", encoding="utf-8") as f:
            json.dump(result, f)
