class Dataset:
    def __init__(self, factor=1):
        self.factor = factor

    def predict_stream(self, payload):
        yield {"key": payload["key"]}

    def production_stream(self, payload):
        yield {"key": payload["key"]}

    def postprocess_batch(self, input_batch, output_batch):
        return {"key": input_batch["key"], "output": [value * self.factor for value in output_batch["output"]]}


class Model:
    def __init__(self, n_gpus):
        self.n_gpus = n_gpus

    def run(self, batch, train, stream):
        return {"output": [2 * value for value in batch["key"]]}
