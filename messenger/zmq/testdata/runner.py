"""A runner's socket, for tests: a ROUTER that answers each message with itself.

    runner.py PORT [--late SECONDS] [--heartbeat MS]

Some messages are orders: "sleep SECONDS" answers later, "parts" answers first
with a message of three frames, "flood N BYTES" answers N messages of BYTES.
"""
import argparse
import time

import zmq

parser = argparse.ArgumentParser()
parser.add_argument("port", type=int)
parser.add_argument("--late", type=float, default=0)
parser.add_argument("--heartbeat", type=int, default=0)
args = parser.parse_args()

socket = zmq.Context.instance().socket(zmq.ROUTER)
socket.setsockopt(zmq.IDENTITY, b"runner")
if args.heartbeat:
    socket.setsockopt(zmq.HEARTBEAT_IVL, args.heartbeat)
    # Long, since a loaded machine may pause the other side.
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 20 * args.heartbeat)
time.sleep(args.late)
socket.bind("tcp://127.0.0.1:%d" % args.port)
print("bound", flush=True)
while True:
    identity, body = socket.recv_multipart()
    words = body[:64].split(b" ")
    if words[0] == b"sleep":
        time.sleep(float(words[1]))
    elif words[0] == b"parts":
        socket.send_multipart([identity, b"one", b"two", b"three"])
    elif words[0] == b"flood":
        for _ in range(int(words[1])):
            socket.send_multipart([identity, b"x" * int(words[2])])
        continue
    socket.send_multipart([identity, body])
