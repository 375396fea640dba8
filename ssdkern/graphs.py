"""CUDA graphs of a detector and of a training step: recorded once, replayed without Python.

Both read from buffers of fixed size and never wait for the device. Ground truth lies in buffers of
fixed capacity; its rows behind the last image's are nobody's.
"""

from contextlib import contextmanager

import torch

from ssdkern._backend import resolve

_WARMUP = 3  # runs before recording, in which libraries choose and load their kernels


@contextmanager
def tuned():
    """Within it cuDNN times its algorithms at every new shape, which pays where shapes stay."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def capture(model, images, *, autocast=None, backend=None, compile=False):
    """Record `SSD.detect` as a CUDA graph.

    Args:
        model: an `ssdkern.SSD` in eval mode on a CUDA device. Its weights may change in place.
        images (Tensor[B, 3, S, S]): of the shape, dtype and layout of all that will come.
        autocast: dtype to compute the network in, such as ``torch.bfloat16``, or None.
        backend: of `ssdkern.detect`; ``"torch"`` waits for the device and cannot be recorded.
        compile: records ``model.detect`` as ``torch.compile`` makes it.

    Returns:
        CapturedDetector: called with images, it returns what ``model.detect`` would, before the
        device is done. The next call writes over the result. Images in pinned memory are read
        later: write to them only after waiting for the result.

    Raises:
        ValueError: the model is not on a CUDA device, or in training mode.
        RuntimeError: only the torch backend can run.
    """
    _want_cuda(model)
    if model.training:
        raise ValueError("want a model in eval mode to capture, got one in training mode")
    return CapturedDetector(model, images, autocast, backend or model.backend, compile)


class CapturedDetector:
    """What `capture` returns."""

    def __init__(self, model, images, autocast, backend, compile):
        _want_capturable("detect", backend)
        device = model.mean.device
        self._images = images.to(device, copy=True)
        run = torch.compile(model.detect, fullgraph=True) if compile else model.detect

        def detect():
            with torch.no_grad(), _autocast(autocast):
                return run(self._images, backend=backend)

        self._graph, self._found = _record(detect, device)

    def __call__(self, images):
        """Detections of images of the recorded shape."""
        _want_same("images", images, self._images)
        self._images.copy_(images, non_blocking=True)
        self._graph.replay()
        return self._found


class CapturedBackward:
    """Forward, loss and backward of a batch as a CUDA graph, which adds to the gradients.

    Args:
        model: an `ssdkern.SSD` in training mode on a CUDA device, whose parameters keep their
            place and, from here on, their gradients: ``zero_grad(set_to_none=False)``.
        batch: of `ssdkern.data.make_loader`; all that come have its image shape.
        normalizer: of `SSD.loss`.
        loss: replaces ``model.loss``, such as a compiled one.
        autocast, backend: as for `capture`.
        capacity: rows of ground truth in the buffers; more in a batch record the graph anew.
    """

    def __init__(
        self, model, batch, normalizer, *, loss=None, autocast=None, backend=None, capacity=0
    ):
        _want_cuda(model)
        self._backend = backend or model.backend
        for op in ("match_priors", "multibox_loss"):
            _want_capturable(op, self._backend)
        self._model, self._normalizer, self._loss = model, normalizer, loss or model.loss
        self._autocast = autocast
        device = model.mean.device
        self._images = batch.images.to(device, memory_format=torch.channels_last, copy=True)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self._grads = [parameter.grad for parameter in self._parameters]
        self._prepare(batch, max(capacity, len(batch.gt_boxes)))

    def __call__(self, batch):
        """Add the gradients of a batch; Tensor[3] of both terms and the number of positives."""
        _want_same("images", batch.images, self._images)
        if any(p.grad is not g for p, g in zip(self._parameters, self._grads, strict=True)):
            raise RuntimeError(
                "want the gradients that were captured, got others: "
                "zero_grad(set_to_none=False) keeps them"
            )
        if len(batch.gt_boxes) > len(self._truth[0]):
            self._prepare(batch, 2 * len(batch.gt_boxes))
        self._images.copy_(batch.images, non_blocking=True)
        fill_truth(self._truth, batch)
        self._graph.replay()
        return self._sums.clone()

    def _prepare(self, batch, capacity):
        self._graph = self._sums = None  # or two graphs would hold activations
        self._truth = truth_buffers(capacity, len(batch.images), self._images.device)
        fill_truth(self._truth, batch)
        changed = [*self._grads, *self._model.buffers()]
        before = [tensor.clone() for tensor in changed]
        self._graph, self._sums = _record(self._backward, self._images.device)
        torch._foreach_copy_(changed, before)  # the warm-up was no step

    def _backward(self):
        with _autocast(self._autocast):
            loss = self._loss(
                self._images, *self._truth, normalizer=self._normalizer, backend=self._backend
            )
        (loss.localization + loss.classification).backward()
        return torch.stack([each.detach().float() for each in loss])


def truth_buffers(capacity, images, device):
    """Room for packed ground truth: boxes [capacity, 4], labels [capacity], offsets [B + 1]."""
    return (
        torch.zeros(capacity, 4, device=device),
        torch.ones(capacity, dtype=torch.int64, device=device),
        torch.zeros(images + 1, dtype=torch.int32, device=device),
    )


def fill_truth(buffers, batch):
    """Copies the ground truth of a batch into the first rows of `buffers`, without waiting."""
    boxes, labels, offsets = buffers
    count = len(batch.gt_boxes)
    boxes[:count].copy_(batch.gt_boxes, non_blocking=True)
    labels[:count].copy_(batch.gt_labels, non_blocking=True)
    offsets.copy_(batch.gt_offsets, non_blocking=True)


def _record(run, device):
    """A graph of `run` and its result, the memory that each replay on `device` writes to."""
    with torch.cuda.device(device), tuned():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARMUP):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # a loader's thread may pin memory meanwhile, which the mode "global" forbids all threads
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            result = run()
    return graph, result


def _autocast(dtype):
    # a graph keeps no copies of weights for later: they would not change with the weights
    return torch.autocast("cuda", dtype, enabled=dtype is not None, cache_enabled=False)


def _want_cuda(model):
    device = model.mean.device
    if device.type != "cuda":
        raise ValueError(f"want a model on a CUDA device to capture, got {device}")


def _want_capturable(op, backend):
    if resolve(op, backend, "cuda") == "torch":
        raise RuntimeError(f"want native or Triton kernels to capture {op}, got the torch backend")


def _want_same(name, got, wanted):
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        raise ValueError(
            f"want {name} {list(wanted.shape)} of {wanted.dtype} as captured, "
            f"got {list(got.shape)} of {got.dtype}"
        )
