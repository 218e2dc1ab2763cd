import importlib
import json
import os


def load_config(config_file):
    with open(config_file) as f:
        return json.load(f)  # which is YAML, too


def make(section):
    arguments = dict(section)
    module, _, name = arguments.pop("class").rpartition(".")
    return getattr(importlib.import_module(module), name)(**arguments)
