"""A pytest plugin that puts the CUDA kernels, compiled for the CPU, in place of the CPU ones."""

import os

import torch

import ssdkern._backend  # noqa: F401  the schemas come first

torch.ops.load_library(os.environ["SSDKERN_CUDA_ON_HOST"])
# new tensors are full of NaN, and scratch of 0xff: what a kernel leaves out shows
torch.use_deterministic_algorithms(True, warn_only=True)
