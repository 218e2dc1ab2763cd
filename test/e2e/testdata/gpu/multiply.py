"""Multiplies two matrices on the GPU and says by what, as JSON.

PyTorch or CuPy does it where one is installed and sees a GPU; else the driver
itself, with nothing but Python's standard library. The numbers are small and
whole, so that the product is exact whoever makes it, and it is checked without
another product: for a vector v, A(Bv) = (AB)v.
"""

import array
import ctypes
import json
import os
import random
import sys

SIZE = 512

# One thread an element; any GPU since 2014 compiles it for itself.
KERNEL = b"""
.version 6.0
.target sm_50
.address_size 64

.visible .entry multiply(.param .u64 a, .param .u64 b, .param .u64 c, .param .u32 size)
{
    .reg .pred %outside, %more;
    .reg .b32 %n, %i, %block, %width, %thread, %all, %row, %first, %column, %k, %at;
    .reg .f32 %x, %y, %product, %sum;
    .reg .b64 %pa, %pb, %pc, %offset, %address;

    ld.param.u32 %n, [size];
    mov.u32 %block, %ctaid.x;
    mov.u32 %width, %ntid.x;
    mov.u32 %thread, %tid.x;
    mad.lo.s32 %i, %block, %width, %thread;
    mul.lo.s32 %all, %n, %n;
    setp.ge.u32 %outside, %i, %all;
    @%outside bra END;
    ld.param.u64 %pa, [a];
    ld.param.u64 %pb, [b];
    ld.param.u64 %pc, [c];
    div.u32 %row, %i, %n;
    mul.lo.s32 %first, %row, %n;
    sub.s32 %column, %i, %first;
    mov.f32 %sum, 0f00000000;
    mov.u32 %k, 0;
LOOP:
    add.s32 %at, %first, %k;
    mul.wide.u32 %offset, %at, 4;
    add.s64 %address, %pa, %offset;
    ld.global.f32 %x, [%address];
    mad.lo.s32 %at, %k, %n, %column;
    mul.wide.u32 %offset, %at, 4;
    add.s64 %address, %pb, %offset;
    ld.global.f32 %y, [%address];
    mul.rn.f32 %product, %x, %y;
    add.rn.f32 %sum, %sum, %product;
    add.s32 %k, %k, 1;
    setp.lt.u32 %more, %k, %n;
    @%more bra LOOP;
    mul.wide.u32 %offset, %i, 4;
    add.s64 %address, %pc, %offset;
    st.global.f32 [%address], %sum;
END:
    ret;
}
"""


def by_torch(a, b):
    import torch

    if not torch.cuda.is_available():
        raise ImportError("PyTorch sees no GPU")
    left, right = (torch.tensor(m, dtype=torch.float32, device="cuda").reshape(SIZE, SIZE) for m in (a, b))
    return (left @ right).flatten().tolist(), torch.cuda.get_device_name(0), torch.cuda.device_count()


def by_cupy(a, b):
    import cupy

    count = cupy.cuda.runtime.getDeviceCount()
    left, right = (cupy.array(m, dtype=cupy.float32).reshape(SIZE, SIZE) for m in (a, b))
    name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    return (left @ right).ravel().tolist(), name, count


def by_driver(a, b):
    cuda = ctypes.CDLL("libcuda.so.1")

    def call(name, *args):
        status = getattr(cuda, name)(*args)
        if status != 0:
            text = ctypes.c_char_p()
            cuda.cuGetErrorString(status, ctypes.byref(text))
            raise RuntimeError("%s: %s (%d)" % (name, (text.value or b"?").decode(), status))

    count, device, context = ctypes.c_int(), ctypes.c_int(), ctypes.c_void_p()
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    name = ctypes.create_string_buffer(128)
    call("cuInit", 0)
    call("cuDeviceGetCount", ctypes.byref(count))
    call("cuDeviceGet", ctypes.byref(device), 0)
    call("cuDeviceGetName", name, len(name), device)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    call("cuCtxSetCurrent", context)
    call("cuModuleLoadData", ctypes.byref(module), KERNEL)
    call("cuModuleGetFunction", ctypes.byref(function), module, b"multiply")

    size = ctypes.c_size_t(SIZE * SIZE * 4)
    buffers = [ctypes.c_uint64() for _ in range(3)]
    for pointer in buffers:
        call("cuMemAlloc_v2", ctypes.byref(pointer), size)
    for pointer, matrix in zip(buffers, (a, b)):
        call("cuMemcpyHtoD_v2", pointer, (ctypes.c_float * len(matrix)).from_buffer(array.array("f", matrix)), size)
    arguments = [*buffers, ctypes.c_uint32(SIZE)]
    pointers = (ctypes.c_void_p * 4)(*(ctypes.addressof(x) for x in arguments))
    blocks, threads = (SIZE * SIZE + 255) // 256, 256
    call("cuLaunchKernel", function, blocks, 1, 1, threads, 1, 1, 0, None, pointers, None)
    call("cuCtxSynchronize")
    product = (ctypes.c_float * (SIZE * SIZE))()
    call("cuMemcpyDtoH_v2", product, buffers[2], size)
    return list(product), name.value.decode(), count.value


def times(matrix, vector):
    return [sum(x * y for x, y in zip(matrix[i:i + SIZE], vector)) for i in range(0, SIZE * SIZE, SIZE)]


def main(outputs):
    a, b = ([float(random.randrange(8)) for _ in range(SIZE * SIZE)] for _ in range(2))
    for multiply in by_torch, by_cupy, by_driver:
        try:
            product, name, count = multiply(a, b)
            break
        except ImportError as e:
            print("%s: %s" % (multiply.__name__, e))
    v = [float(random.randrange(1000)) for _ in range(SIZE)]
    if times(a, times(b, v)) != times(product, v):
        raise SystemExit("the product is wrong")
    with open(os.path.join(outputs, "output"), "w") as f:
        json.dump({"by": multiply.__name__, "gpu": name, "count": count, "size": SIZE}, f)


main(sys.argv[1])
