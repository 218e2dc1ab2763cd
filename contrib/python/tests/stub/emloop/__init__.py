"""A stand-in for emloop: what runners ask of it, for a model that doubles numbers."""
from . import utils  # noqa: F401


def create_dataset(config, output_dir):
    return utils.make(config["dataset"])


def create_model(config, output_dir, dataset, restore_from):
    model = utils.make(config["model"])
    model.restored_from = restore_from
    return model
