"""What a GPU spends a call on, by the names of its kernels."""

import re
from collections import defaultdict

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

# of cuDNN, cuBLAS, CUTLASS and Inductor's templates; its fused kernels name what they follow
_PRODUCTS = re.compile(
    "gemm|gemv|nvjet|cutlass|xmma|winograd|[fdw]grad|fprop|convolve|conv2d|implicit|splitk"
    "|^triton_tem_|^cudnn.*conv",
    re.IGNORECASE,
)
_FUSED = re.compile("^triton_(poi|red|per|for)_")
_OURS = re.compile(r"ssdkern::|^_?\w+_kernel$")


def kind(name):
    """Whose a kernel is: `convolutions`, products of matrices among them, `ours` or `rest`."""
    if _OURS.search(name):
        return "ours"
    return "convolutions" if _PRODUCTS.search(name) and not _FUSED.match(name) else "rest"


def microseconds(call, rounds=10):
    """Of each kernel in one call, the longest first; without a profiler of the GPU, nothing."""
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        for _ in range(rounds):
            call()
        torch.cuda.synchronize()
    times = defaultdict(float)
    for event in trace.key_averages():
        if event.device_type == DeviceType.CUDA:
            name = event.key.replace("(anonymous namespace)::", "").removeprefix("void ")
            times[name.split("(")[0][:80]] += event.self_device_time_total / rounds
    order = sorted(times.items(), key=lambda item: -item[1])
    return {name: round(time, 2) for name, time in order if time > 0}


def shares(times):
    """By kind, of the time in which kernels ran."""
    total = sum(times.values())
    kinds = {"convolutions": 0.0, "ours": 0.0, "rest": 0.0}
    for name, time in times.items():
        kinds[kind(name)] += time / total
    return kinds if times else {}
