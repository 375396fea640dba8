"""Pictures in, final boxes out."""

import pytest
import torch

import ssdkern
from bench.whole import Subject, cannot, seconds, time_whole
from ssdkern import Detections, detect
from ssdkern.lists import list_detections


def agree(ours, theirs, exact):
    """The same scores in the same order; bfloat16 rounds otherwise in another graph."""
    for scores, count, other in zip(ours.scores, ours.count, theirs, strict=True):
        if exact:
            assert abs(int(count) - len(other["scores"])) <= 1
        most = min(int(count), len(other["scores"]))
        bound = 1e-3 if exact else 5e-2
        torch.testing.assert_close(scores[:most], other["scores"][:most], rtol=bound, atol=bound)


def bench_inference(benchmark, device, model, batch, mode, library):
    """Eager answers as torchvision's do, all others as the eager one."""
    if reason := cannot(library, model, mode, device):
        pytest.skip(reason)
    subject = Subject(model, batch, device)
    words, exact = mode.split("+"), device.type == "cpu"
    phases = {}
    if library == "torchvision":
        run = _theirs(subject, words)
        if words == ["eager"]:
            agree(_ours(subject, words)(), run(), exact)
    else:
        run = _ours(subject, words)
        if words == ["eager"] and subject.theirs:
            agree(run(), _theirs(subject, words)(), exact)
        elif words != ["eager"]:
            eager = _ours(subject, ["eager", *({"host"} & set(words))])()
            agree(run(), list_detections(eager, eager.boxes.new_ones(4)), exact)
        if "captured" not in words:
            phases = _phases(subject)
    name = f"inference-{mode}-{model}-B{batch}"
    time_whole(benchmark, subject, run, name, library, phases, backward=False)


def _ours(subject, words):
    """A function to the detections of the batch; `host`: from and to the memory of the CPU."""
    model, images = subject.ours.eval(), subject.images
    compiled, captured = "compiled" in words, "captured" in words
    if captured:
        find = ssdkern.capture(model, images, autocast=subject.dtype, compile=compiled)
    else:
        of = torch.compile(model.detect, fullgraph=True) if compiled else model.detect

        def find(images):
            with torch.no_grad(), subject.autocast():
                return of(images.to(subject.device, non_blocking=True))

    if "host" not in words:
        return lambda: find(images)
    pinned = images.cpu().pin_memory()
    return lambda: Detections(*(part.cpu() for part in find(pinned)))


def _theirs(subject, words):
    model = subject.theirs.eval()
    of = torch.compile(model) if "compiled" in words else model

    def find():
        with torch.no_grad(), subject.autocast():
            return of(subject.list)

    return find


def _phases(subject):
    """Seconds of the network and of what follows it, each alone, eager."""
    ours = subject.ours
    with torch.no_grad(), subject.autocast():
        heads = ours.heads(subject.images)
        limits = {"score_threshold": ours.score_thresh, "iou_threshold": ours.nms_thresh}
        limits |= {"nms_top_k": ours.topk_candidates, "keep_top_k": ours.detections_per_img}
        limits |= {"max_log_scale": ours.max_log_scale, "clip": ours.clip}
        return {
            "network": seconds(lambda: ours.heads(subject.images), subject.device, 5),
            "detection": seconds(lambda: detect(*heads, ours.priors, **limits), subject.device, 5),
        }
