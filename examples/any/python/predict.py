"""Say which digits pictures show, with nothing but Python, and knowing nothing of shepherd.

    predict.py WEIGHTS INPUT_DIRECTORY OUTPUT_FILE

It prints how far it is, in a way that any program may.
"""
import json
import os
import struct
import sys
import zlib


def read_weights(path):
    """Read the tensors of a weights file: examples/digits/nn says what is in it."""
    with open(path, "rb") as f:
        data = f.read()
    count = struct.unpack_from("<I", data, 12)[0]
    at, tensors = 16, {}
    for _ in range(count):
        length = data[at]
        name = data[at + 1:at + 1 + length].decode()
        at += 1 + length
        rank = data[at]
        shape = struct.unpack_from("<%dI" % rank, data, at + 1)
        at += 1 + 4 * rank
        size = 1
        for n in shape:
            size *= n
        tensors[name] = struct.unpack_from("<%df" % size, data, at)
        at += 4 * size
    return tensors


def read_png(path):
    """Read a grey picture of 28 by 28 pixels, as fractions of white."""
    with open(path, "rb") as f:
        data = f.read()
    at, packed = 8, b""
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8:at + 8 + length]
        if kind == b"IHDR" and struct.unpack(">IIBBBBB", body) != (28, 28, 8, 0, 0, 0, 0):
            raise ValueError("%s is not a grey picture of 28 by 28 pixels" % path)
        if kind == b"IDAT":
            packed += body
        at += 12 + length
    raw = zlib.decompress(packed)
    rows, above = [], bytes(28)
    for y in range(28):
        kind, line = raw[29 * y], bytearray(raw[29 * y + 1:29 * y + 29])
        for x in range(28):
            a, b, c = (line[x - 1] if x else 0), above[x], (above[x - 1] if x else 0)
            if kind == 4:  # Paeth
                p = a + b - c
                near = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
            else:
                near = (0, a, b, (a + b) // 2)[kind]
            line[x] = (line[x] + near) & 255
        above = bytes(line)
        rows.append([v / 255 for v in line])
    return [rows]


def convolve(planes, weight, bias, outputs):
    """Slide windows of 5 by 5 over planes."""
    size, inputs = len(planes[0]) - 4, len(planes)
    result = []
    for o in range(outputs):
        windows = [
            (planes[i], ky, kx, weight[((o * inputs + i) * 5 + ky) * 5 + kx])
            for i in range(inputs) for ky in range(5) for kx in range(5)
        ]
        plane = [[bias[o]] * size for _ in range(size)]
        for source, ky, kx, w in windows:
            for y in range(size):
                row, out = source[y + ky], plane[y]
                plane[y] = [v + w * u for v, u in zip(out, row[kx:kx + size])]
        result.append(plane)
    return result


def pool(planes):
    """Keep the greatest of every square, where it is above zero."""
    half = len(planes[0]) // 2
    return [
        [[max(0.0, p[2 * y][2 * x], p[2 * y][2 * x + 1], p[2 * y + 1][2 * x], p[2 * y + 1][2 * x + 1]) for x in range(half)] for y in range(half)]
        for p in planes
    ]


def dense(values, weight, bias):
    """Connect every value with every output."""
    n = len(values)
    return [b + sum(w * v for w, v in zip(weight[i * n:(i + 1) * n], values)) for i, b in enumerate(bias)]


def classify(t, picture):
    """Return the digit that a picture most probably shows."""
    planes = pool(convolve(picture, t["conv1.weight"], t["conv1.bias"], 12))
    planes = pool(convolve(planes, t["conv2.weight"], t["conv2.bias"], 24))
    values = [v for plane in planes for row in plane for v in row]
    values = [max(0.0, v) for v in dense(values, t["dense1.weight"], t["dense1.bias"])]
    values = dense(values, t["dense2.weight"], t["dense2.bias"])
    return values.index(max(values))


def main(weights, inputs, output):
    tensors = read_weights(weights)
    names = sorted(os.listdir(inputs))
    predictions = []
    for i, name in enumerate(names):
        predictions.append({"input": name, "digit": classify(tensors, read_png(os.path.join(inputs, name)))})
        if (i + 1) % 10 == 0:
            print("::progress %.2f %d of %d" % ((i + 1) / len(names), i + 1, len(names)), flush=True)
    with open(output, "w") as f:
        json.dump({"predictions": predictions}, f)


if __name__ == "__main__":
    main(*sys.argv[1:])
