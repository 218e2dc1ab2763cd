"""The behaviour that runners of the original shepherd have, with a stand-in for emloop."""
import asyncio
import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
import unittest
from unittest import mock

import zmq
import zmq.asyncio

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "src"), os.path.join(HERE, "stub")]

from shepherd.comm import CancelMessage, DoneMessage, ErrorMessage, EventMessage, InputMessage, Messenger  # noqa: E402
from shepherd.comm.messages import decode_message, encode_message  # noqa: E402
from shepherd.constants import DEFAULT_OUTPUT_FILE, DEFAULT_PAYLOAD_FILE, INPUT_DIR, OUTPUT_DIR  # noqa: E402
from shepherd.errors.comm import MessageError, UnexpectedMessageTypeError  # noqa: E402
from shepherd.runner import BaseRunner, JSONRunner, n_available_gpus, to_json_serializable  # noqa: E402
from shepherd.runner.runner_entry_point import main, read_class  # noqa: E402
from shepherd.runner.serving import Stop, stop_on_signal  # noqa: E402

HANG = 30  # seconds, which bound what must happen soon


def free_port():
    """Return a port that is free, of those that no client's connection is given."""
    while True:
        port = random.randrange(10000, 32000)
        with socket.socket() as s:
            try:
                s.bind(("0.0.0.0", port))
            except OSError:
                continue
            return port


class Runner(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.root = directory.name
        self.port = free_port()

    def config(self, **more):
        path = os.path.join(self.root, "model")
        os.makedirs(path, exist_ok=True)
        config = dict({"model": {"class": "dummy.Model"}, "dataset": {"class": "dummy.Dataset"}}, **more)
        with open(os.path.join(path, "config.yaml"), "w") as f:
            json.dump(config, f)
        return path

    def job(self, job_id, payload):
        for name in (INPUT_DIR, OUTPUT_DIR):
            os.makedirs(os.path.join(self.root, job_id, name))
        with open(os.path.join(self.root, job_id, INPUT_DIR, DEFAULT_PAYLOAD_FILE), "w") as f:
            json.dump(payload, f)
        return InputMessage(dict(job_id=job_id, io_data_root=self.root))

    def output(self, job_id):
        with open(os.path.join(self.root, job_id, OUTPUT_DIR, DEFAULT_OUTPUT_FILE)) as f:
            return json.load(f)

    def talk(self, runner, conversation):
        """Run a runner while a coroutine talks to it."""

        async def both():
            client = zmq.asyncio.Context.instance().socket(zmq.DEALER)
            client.setsockopt(zmq.LINGER, 0)
            client.connect("tcp://127.0.0.1:%d" % self.port)
            serving = asyncio.ensure_future(runner.process_all())
            talking = asyncio.ensure_future(conversation(client))
            try:
                ended, _ = await asyncio.wait({serving, talking}, timeout=HANG, return_when=asyncio.FIRST_COMPLETED)
                self.assertTrue(ended, "nobody answers")
                return (talking if talking in ended else serving).result()  # it raises what the runner ended with
            finally:
                for task in (serving, talking):
                    task.cancel()
                await asyncio.gather(serving, talking, return_exceptions=True)
                client.close()

        return asyncio.run(both())

    def test_json_runner(self):
        for stream, more, expected in (
            ("predict", {}, 84),
            ("production", {"eval": {"production": {"dataset": {"factor": 10}}}}, 840),
        ):
            path = self.config(**more)
            for config_path in (path, os.path.join(path, "config.yaml")):
                self.port = free_port()  # zmq lets go of the last one in the background
                runner = JSONRunner(config_path, self.port, stream)
                name = stream + str(len(config_path))

                async def conversation(client):
                    for job_id in (name + "-first", name + "-second"):
                        await Messenger.send(client, self.job(job_id, {"key": [42]}))
                        message = await Messenger.recv(client, [DoneMessage])
                        self.assertEqual(message.job_id, job_id)
                        self.assertEqual(self.output(job_id), {"key": [42], "output": [expected]})

                self.talk(runner, conversation)
                self.assertEqual(runner._model.restored_from, path)

    def test_json_runner_exception(self):
        runner = JSONRunner(self.config(), self.port, "does_not_exist")

        async def conversation(client):
            await Messenger.send(client, self.job("a", {"key": [42]}))
            error = await Messenger.recv(client, [ErrorMessage])
            self.assertEqual(error.message, "AttributeError: 'Dataset' object has no attribute 'does_not_exist_stream'")
            self.assertEqual(error.exception_type, "<class 'AttributeError'>")
            self.assertRegex(error.exception_traceback, r"^\['  File ")

        self.talk(runner, conversation)

    def test_listener_survives(self):
        class Picky(BaseRunner):
            def _process_job(self, input_path, output_path):
                with open(os.path.join(input_path, DEFAULT_PAYLOAD_FILE)) as f:
                    if json.load(f) == "exit":
                        sys.exit(3)

        async def conversation(client):
            for nonsense in (b"", b"{}", b"[]", b"\xff", b'{"message": {"message_type": "DoneMessage"}}'):
                await client.send(nonsense)
            await Messenger.send(client, self.job("exit", "exit"))
            self.assertEqual((await Messenger.recv(client)).message, "SystemExit: 3")
            await Messenger.send(client, self.job("b", "go on"))
            self.assertIsInstance(await Messenger.recv(client), DoneMessage)

        self.talk(Picky("no config", self.port, "predict"), conversation)

    def test_events_and_cancel(self):
        class Slow(BaseRunner):
            def _process_job(self, input_path, output_path):
                self.progress(0.5, "half")
                deadline = time.monotonic() + HANG
                while not self.cancelled and time.monotonic() < deadline:
                    time.sleep(0.001)
                raise RuntimeError("given up")

        async def conversation(client):
            await Messenger.send(client, self.job("a", None))
            await Messenger.send(client, CancelMessage(job_id="a"))  # the runner looks once it is at work
            accepted = await Messenger.recv(client, [EventMessage])
            self.assertEqual((accepted.event, accepted.features), ("accepted", ["cancel"]))
            half = await Messenger.recv(client, [EventMessage])
            self.assertEqual((half.event, half.progress, half.text, half.job_id), ("progress", 0.5, "half", "a"))
            self.assertEqual((await Messenger.recv(client, [ErrorMessage])).exception_type, "Cancelled")

        with mock.patch.dict(os.environ, {"SHEPHERD_FEATURES": "events"}):
            self.talk(Slow("no config", self.port, "predict"), conversation)

    def test_custom_class(self):
        path = self.config()
        for text in ("runner:\n  class: no_such_module.Runner\n", "runner: {class: no_such_module.Runner}\n"):
            with open(os.path.join(path, "runner.yaml"), "w") as f:
                f.write(text)
            self.assertEqual(read_class(os.path.join(path, "runner.yaml")), "no_such_module.Runner")
            with self.assertRaises(ModuleNotFoundError):
                main(["-p", "8888", path])

    def test_command(self):
        env = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path[:2]))
        command = [sys.executable, "-m", "shepherd.runner.runner_entry_point", "-p", str(self.port), self.config()]
        runner = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
        self.addCleanup(runner.wait)
        self.addCleanup(runner.kill)

        async def conversation():
            client = zmq.asyncio.Context.instance().socket(zmq.DEALER)
            client.connect("tcp://127.0.0.1:%d" % self.port)
            await Messenger.send(client, self.job("a", {"key": [1]}))
            await asyncio.wait_for(Messenger.recv(client, [DoneMessage]), HANG)
            client.close()

        asyncio.run(conversation())
        self.assertEqual(self.output("a")["output"], [2])
        runner.terminate()
        self.assertEqual(runner.wait(HANG), 0)

    def test_stop_in_a_callback(self):
        async def wait():
            asyncio.get_running_loop().call_soon(stop_on_signal, 15, None)
            await asyncio.sleep(HANG)

        with self.assertRaises(Stop):
            asyncio.run(wait())

    def test_without_emloop(self):
        with mock.patch.dict(sys.modules, {"emloop": None}):
            with self.assertRaisesRegex(ImportError, "pip install emloop"):
                JSONRunner(self.config(), self.port, "predict")._load_model()


class Functions(unittest.TestCase):
    def test_to_json_serializable(self):
        class Array:  # as numpy's are
            def __init__(self, value):
                self.value = value

            def tolist(self):
                return self.value

        for original, serializable in (
            ([{"a": Array([1, 2, 3])}], [{"a": [1, 2, 3]}]),
            ([Array(1), Array(2)], [1, 2]),
            ((Array(42), "crazy", None, True, 0.5), [42, "crazy", None, True, 0.5]),
        ):
            self.assertEqual(to_json_serializable(original), serializable)
        with self.assertRaises(ValueError):
            to_json_serializable(asyncio)

    def test_n_gpus(self):
        system = len([name for name in os.listdir("/dev") if re.search(r"nvidia[0-9]+", name)])
        for env, want in (
            ({}, system), ({"NVIDIA_VISIBLE_DEVICES": "all"}, system), ({"NVIDIA_VISIBLE_DEVICES": "0,3"}, 2),
            ({"CUDA_VISIBLE_DEVICES": "1"}, 1), ({"NVIDIA_VISIBLE_DEVICES": "0,3", "CUDA_VISIBLE_DEVICES": ""}, 0),
            ({"NVIDIA_VISIBLE_DEVICES": "void"}, 0),
        ):
            with mock.patch.dict(os.environ, env, clear=True):
                self.assertEqual(n_available_gpus(), want, env)

    def test_messages(self):
        frame = encode_message(InputMessage(dict(job_id="a", io_data_root="/x")))
        self.assertEqual(
            json.loads(frame.decode()),
            {"message": {"identity": "", "job_id": "a", "message_type": "InputMessage", "io_data_root": "/x"}},
        )
        message = decode_message(b'{"message": {"job_id": "a", "message_type": "ErrorMessage", "message": "m", "more": 1}}')
        self.assertEqual((type(message), message.message, message.exception_type), (ErrorMessage, "m", None))
        for wrong in (b"", b"{}", b'{"message": {"message_type": "NoSuch"}}', b'{"message": {"message_type": "DoneMessage", "job_id": 7}}'):
            with self.assertRaises(MessageError):
                decode_message(wrong)
        self.assertTrue(issubclass(UnexpectedMessageTypeError, MessageError))


if __name__ == "__main__":
    unittest.main()
