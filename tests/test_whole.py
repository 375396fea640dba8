"""From images to loss and detections: one graph, few calls, none that waits, float32 at the end."""

from importlib import import_module

import pytest
import torch
from cases import random_boxes, scene, whole
from test_train import Scenes, options, train
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import ssdkern
from ssdkern import why_not
from ssdkern.data.loader import Batch
from ssdkern.graphs import fill_truth, truth_buffers
from ssdkern.model import ssd_tiny
from ssdkern.train import fit

WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "item"}
NATIVE = why_not("multibox_loss", "native", "cpu") or why_not("detect", "native", "cpu")
native = pytest.mark.skipif(NATIVE is not None, reason=str(NATIVE))


class Calls(TorchDispatchMode):
    """Names of the operators that run, and those that gather by a mask."""

    def __init__(self):
        super().__init__()
        self.names, self.masked = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        if self.names[-1] in ("index", "index_put_") and args[1]:
            self.masked += [i for i in args[1] if i is not None and i.dtype == torch.bool]
        return function(*args, **(kwargs or {}))


def batch_of(images, truths=3, classes=91):
    corner = torch.rand(images * truths, 2) * 0.5
    boxes = torch.cat((corner, corner + 0.1 + 0.4 * torch.rand_like(corner)), dim=1)
    labels = torch.randint(1, classes, (len(boxes),))
    rows = torch.arange(images + 1, dtype=torch.int32) * truths
    return Batch(torch.randint(0, 256, (images, 3, 64, 64), dtype=torch.uint8), boxes, labels, rows)


def gradients(model, loss):
    model.zero_grad()
    (loss.localization + loss.classification).backward()
    return [parameter.grad for parameter in model.parameters()]


@native
@pytest.mark.parametrize("job", ["detect", "loss"])
def test_as_many_calls_whatever_the_batch_and_none_waits(job, monkeypatch):
    for module in ("_check", "multibox_loss"):
        # the checks that read values on a CPU, as a GPU skips them
        module = import_module(f"ssdkern.ops.{module}")
        monkeypatch.setattr(module, "can_read", lambda tensor: False)
    model, counts = ssd_tiny(91, 64), []
    with torch.no_grad():
        model.conf[0].bias.normal_(std=3)  # plenty to suppress
    for images in (2, 3, 7):
        batch = batch_of(images)
        with Calls() as calls:
            if job == "loss":
                gradients(model.train(), model.loss(*batch))
            else:
                model.eval().detect(batch.images)
        assert not WAITS & set(calls.names) and not calls.masked
        counts.append(len(calls.names))
    assert len(set(counts)) == 1
    network = sum(name in ("convolution", "native_batch_norm") for name in calls.names)
    assert "multibox_loss" in calls.names or "detect" in calls.names
    assert network > 10


@pytest.mark.parametrize("amp", [False, True])
def test_a_training_step_is_one_graph(amp):
    model = ssd_tiny(5, 64)
    model.eval()  # the running averages of the two runs would differ
    compiled = whole(model.loss)
    for images, truths in ((2, 3), (3, 5), (2, 0)):
        batch = batch_of(images, truths, classes=5)
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            expected, found = model.loss(*batch), compiled(*batch)
        bound = {"rtol": 2e-2, "atol": 2e-2} if amp else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(found, expected, **bound)
        if not amp:
            pairs = zip(gradients(model, found), gradients(model, expected), strict=True)
            for one, other in pairs:
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_detection_is_one_graph():
    model = ssd_tiny(91, 64, detections_per_img=20).eval()
    compiled = whole(model.detect)
    with torch.no_grad():
        for images in (2, 3, 1):
            batch = batch_of(images)
            torch.testing.assert_close(compiled(batch.images), model.detect(batch.images))


def test_losses_are_float32_under_autocast():
    model = ssd_tiny(5, 64)
    batch = batch_of(3, classes=5)
    with torch.autocast("cpu", torch.bfloat16):
        logits, _ = model.heads(batch.images)
        loss = model.loss(*batch)
    assert logits.dtype == torch.bfloat16
    assert loss.localization.dtype == loss.classification.dtype == torch.float32
    grads = gradients(model, loss)
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in grads)
    exact = gradients(model, model.loss(*batch))
    one, other = (torch.cat([grad.flatten() for grad in each]) for each in (grads, exact))
    assert nn.functional.cosine_similarity(one, other, dim=0) > 0.95


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_truth_in_larger_buffers_changes_nothing(backend):
    """What an earlier, fuller batch left behind the rows of this one is nobody's."""
    for op in ("match_priors", "multibox_loss"):
        if reason := why_not(op, backend, "cpu"):
            pytest.skip(reason)
    model = ssd_tiny(5, 64)
    buffers = truth_buffers(50, 3, "cpu")
    for truths in (9, 2, 0, 5):
        batch = batch_of(3, truths, classes=5)
        fill_truth(buffers, batch)
        expected = model.loss(*batch, backend=backend)
        found = model.loss(batch.images, *buffers, backend=backend)
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)
        pairs = zip(gradients(model, found), gradients(model, expected), strict=True)
        assert all(torch.equal(one.clone(), other) for one, other in pairs)


def test_training_with_a_compiled_step(tmp_path, monkeypatch):
    compile_whole = nn.Module.compile
    seen = []

    def without_inductor(self, **kwargs):
        seen.append(kwargs)
        compile_whole(self, backend="aot_eager", **kwargs)

    monkeypatch.setattr(nn.Module, "compile", without_inductor)
    more = {"steps": 3, "augment": "none"}
    train(tmp_path / "eager", **more)
    torch._dynamo.reset()
    _, compiled = train(tmp_path / "compiled", compile=True, **more)
    assert seen == [{"fullgraph": True}]
    _, eager = train(tmp_path / "again", **more)
    for one, other in zip(compiled.model.parameters(), eager.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_several_recipes_of_updates(tmp_path):
    """Fused optimisers, clipping, averaging, bfloat16: every one of them learns."""
    for index, more in enumerate(
        (
            {"optimizer": "sgd", "clip_grad": 1.0, "ema": 0.9, "lr": 0.01},
            {"optimizer": "adamw", "clip_grad": 0.0, "ema": 0.0, "amp": "bf16", "accumulate": 2},
        )
    ):
        settings = options(tmp_path / str(index), steps=6, **more)
        code, trainer = fit(*settings, Scenes(), None)
        assert code == 0 and trainer.optimizer.defaults["fused"]
        assert (trainer.ema is None) == (more["ema"] == 0)
        assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_what_needs_a_gpu_says_so(tmp_path):
    with pytest.raises(ValueError, match="want --device cuda with --cuda-graph, got cpu"):
        options(tmp_path, cuda_graph=True)


SIZED = {
    "box_iou": lambda n: (random_boxes(n), random_boxes(n + 1)),
    "encode_boxes": lambda n: (random_boxes(n), random_boxes(n)),
    "decode_boxes": lambda n: (torch.randn(n, 4), random_boxes(n)),
    "mine_hard_negatives": lambda n: (torch.rand(n, 50), torch.rand(n, 50) > 0.8),
    "match_priors": lambda n: (random_boxes(50), *scene((n, 50, 4, n))[3::2]),
    "multibox_loss": lambda n: scene((n, 50, 4, n)),
    "nms": lambda n: (random_boxes(n), torch.rand(n), 0.4),
    "batched_nms": lambda n: (random_boxes(n), torch.rand(n), torch.arange(n) % 3, 0.4),
    "multiclass_nms": lambda n: (random_boxes(n)[None], torch.rand(1, n, 4)),
    "detect": lambda n: scene((n, 50, 4, n))[:3],
}


@pytest.mark.parametrize("op", SIZED)
def test_another_size_is_no_other_graph(op):
    """As --compile needs it, whose batches never hold the same number of boxes."""
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = whole(getattr(ssdkern, op), "eager")
        for size in (7, 12):
            compiled(*SIZED[op](size))
        with torch.compiler.set_stance("fail_on_recompile"):
            compiled(*SIZED[op](23))
