"""The processes of a run: what they add up and agree on, and how one that fails ends all.

``torchrun -m ssdkern.train`` starts any number of them, on any number of machines.
"""

import os
import socket
import sys
import threading
import time
from contextlib import ExitStack, redirect_stdout

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

_LOOK_SECONDS = 0.2  # between looks at whether another process failed
_TOLD_SECONDS = 5.0  # longest wait of one that failed for the others to hear of it


class Group:
    """This process alone, and what `Processes` says of several.

    Attributes:
        rank: number of this process; that of rank 0 alone writes and prints.
        size: how many processes there are.
    """

    rank, size = 0, 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def highest(self, value):
        """The largest of all processes' numbers."""
        return value

    def total_(self, tensor):
        """Adds up a tensor of all processes, in place."""
        return tensor

    def gather(self, value):
        """A list of every process's value by rank."""
        return [value]

    def gather_first(self, value):
        """`gather` for rank 0; None for the others."""
        return [value]

    def share_buffers(self, module):
        """Gives every process the buffers of rank 0, which is where they may differ."""

    def wrap(self, module):
        """The module whose backward leaves the mean of all processes' gradients."""
        return module


class Processes(Group):
    """Several processes, joined for as long as the context lasts.

    An exception that leaves the context on one of them ends all within a second: the others print
    its rank, machine and message, and exit with 1. Whoever waits for the failed one in an operation
    cannot be woken, so the exit is by a thread that looks at the store of the group, and abrupt.
    A process that is killed cannot tell; torchrun names it and ends the others.

    Tensors on the CPU go by gloo, those on GPUs by NCCL, each process on its own GPU.
    """

    def __init__(self):
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.name = f"rank {self.rank} of {self.size} on {socket.gethostname()}"
        self._local = int(os.environ.get("LOCAL_RANK", 0))
        self._stack = ExitStack()
        self._leaving = threading.Event()

    def __enter__(self):
        self.take_gpu()
        store, rank, size = next(rendezvous("env://"))
        self._store = dist.PrefixStore("ssdkern", store)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=dist.PrefixStore("group", store),
            rank=rank,
            world_size=size,
        )
        self._watcher = threading.Thread(target=self._watch, args=(self._store.clone(),))
        self._watcher.daemon = True
        self._watcher.start()
        if self.rank:
            silent = self._stack.enter_context(open(os.devnull, "w"))
            self._stack.enter_context(redirect_stdout(silent))
        return self

    def __exit__(self, kind, error, _):
        self._stack.close()
        if error is not None:
            self._tell(f"{self.name}: {kind.__name__}: {error}")
            return
        self.highest(0)  # none leaves before all are through
        self._stop_watching()
        if self.rank == 0:  # which may hold the store
            self._wait_for("left", self.size - 1)
        else:
            self._store.add("left", 1)
        dist.destroy_process_group()

    def highest(self, value):
        tensor = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return type(value)(tensor.item())

    def total_(self, tensor):
        dist.all_reduce(tensor)
        return tensor

    def gather(self, value):
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def gather_first(self, value):
        values = None if self.rank else [None] * self.size
        dist.gather_object(value, values)
        return values

    def share_buffers(self, module):
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)

    def wrap(self, module):
        device = next(module.parameters()).device
        if device.type == "cuda":
            self.want_own_gpu(str(torch.cuda.get_device_properties(device).uuid))
        devices = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(module, devices, gradient_as_bucket_view=True)

    def take_gpu(self):
        """Makes the GPU of this process the current one, where there is one."""
        count = torch.cuda.device_count()
        index = 0 if count == 1 else self._local  # SLURM may show each process its own alone
        if index < count:
            torch.cuda.set_device(index)

    def want_own_gpu(self, uuid):
        """Refuses a GPU that another process has, too; all processes call it."""
        sharing = [name for other, name in self.gather((uuid, self.name)) if other == uuid]
        if len(sharing) > 1:
            raise ValueError(f"want a GPU for each process, got one for {' and '.join(sharing)}")

    def _watch(self, store):
        while not self._leaving.wait(_LOOK_SECONDS):
            try:
                failed = store.check(["failed"])
                message = store.get("failed").decode() if failed else ""
            except RuntimeError as error:
                failed, message = True, f"the store of the processes is gone: {error}"
            if failed:
                print(f"ssdkern: {self.name} stops, for {message}", file=sys.stderr, flush=True)
                self._acknowledge(store)
                os._exit(1)

    @staticmethod
    def _acknowledge(store):
        try:
            store.add("told", 1)
        except RuntimeError:
            return  # gone

    def _stop_watching(self):
        self._leaving.set()
        self._watcher.join()

    def _tell(self, message):
        """Says why this process fails, unless another did before, and waits until all know."""
        self._stop_watching()
        try:
            first = self._store.compare_set("failed", "", message).decode()
            if first == message:
                self._wait_for("told", self.size - 1)
            else:
                print(f"ssdkern: {first}", file=sys.stderr, flush=True)
                self._store.add("told", 1)
        except RuntimeError as error:
            print(f"ssdkern: {self.name} could tell nobody: {error}", file=sys.stderr)

    def _wait_for(self, key, count):
        end = time.monotonic() + _TOLD_SECONDS
        while self._store.add(key, 0) < count and time.monotonic() < end:
            time.sleep(_LOOK_SECONDS / 10)


def own_cores():
    """Cores of this machine for each of the processes that torchrun started on it, at least 1."""
    known = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def join():
    """The group that this process belongs to, a context: what torchrun started, or it alone."""
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" in os.environ
    return Processes() if several else Group()
