import os


def find_config(path):
    return os.path.join(path, "config.yaml") if os.path.isdir(path) else path


def validate_config(config):
    assert "model" in config and "dataset" in config
