"""What asks a runner, for tests: a DEALER that expects each message back.

    dealer.py PORT [--heartbeat MS]
"""
import argparse

import zmq

parser = argparse.ArgumentParser()
parser.add_argument("port", type=int)
parser.add_argument("--heartbeat", type=int, default=0)
args = parser.parse_args()

context = zmq.Context.instance()
for size in (0, 1, 255, 256, 65536, 4 << 20):
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.RCVTIMEO, 120000)
    if args.heartbeat:
        socket.setsockopt(zmq.HEARTBEAT_IVL, args.heartbeat)
        # Long, since a loaded machine may pause us; heartbeats are sent all the same.
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 600 * args.heartbeat)
    socket.connect("tcp://127.0.0.1:%d" % args.port)
    for i in range(5):
        body = bytes([65 + i]) * size
        socket.send_multipart([b"not", b"for", b"us"])
        socket.send(body)
        answer = socket.recv_multipart()
        assert answer == [body], (size, i, len(answer), [len(frame) for frame in answer])
    if args.heartbeat:
        socket.send(b"sleep")  # answered after several heartbeats
        assert socket.recv_multipart() == [b"sleep"]
    socket.close(0)
print("ok", flush=True)
