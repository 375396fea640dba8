"""Exported detectors, run by onnxruntime and by torch.export, answer as the model does."""

import json

import pytest
import torch

from ssdkern import decode_boxes, export_onnx
from ssdkern.checkpoint import save_weights
from ssdkern.export import export_program, main
from ssdkern.model import ssd_tiny


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = ssd_tiny(4, 64, score_thresh=0.2, detections_per_img=30, topk_candidates=50)
    with torch.no_grad():
        for head in made.conf:
            head.weight.mul_(30)  # scores that differ, and more than enough of them
    return made.eval()


def onnx_session(file):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    return runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module", params=[False, True], ids=["dense", "nms"])
def session(request, model, tmp_path_factory):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    file = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(model, file, nms=request.param, class_names=["a", "b", "c"])
    return onnx_session(file)


@pytest.mark.parametrize("batch", [1, 3])
def test_onnxruntime_answers_as_the_model_does(model, session, batch):
    images = torch.rand(batch, 3, 64, 64)
    found = [torch.from_numpy(a) for a in session.run(None, {"images": images.numpy()})]
    names = [output.name for output in session.get_outputs()]
    if len(names) == 2:
        logits, offsets = model.heads(images)
        expected = decode_boxes(offsets, model.priors), logits.softmax(-1)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        return
    expected = model.detect(images)
    assert names == list(expected._fields)
    assert expected.count.min() > 5
    for name, one, other in zip(names, found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=name)


def test_the_file_tells_its_classes(session):
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["class_names"]) == ["a", "b", "c"]
    assert json.loads(told["image_size"]) == 64


@pytest.mark.parametrize("nms", [False, True])
def test_programs_take_any_batch(model, tmp_path, nms):
    training = model.train().training
    export_program(model, tmp_path / "model.pt2", nms=nms)
    assert model.training is training
    model.eval()
    extra = {"ssdkern.json": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=extra).module()
    assert json.loads(extra["ssdkern.json"]) == {"image_size": 64}
    for batch in (1, 2, 5):
        images = torch.rand(batch, 3, 64, 64)
        expected = model.detect(images) if nms else model.heads(images)
        for one, other in zip(program(images), expected, strict=True):
            torch.testing.assert_close(one, other)


def test_command(model, tmp_path, capsys):
    save_weights(tmp_path / "a.safetensors", model, ["a", "b", "c"])
    weights = ["--weights", str(tmp_path / "a.safetensors")]
    assert main([*weights, "--output", str(tmp_path / "a.pt2"), "--no-nms"]) == 0
    assert (tmp_path / "a.pt2").stat().st_size > 10_000
    assert main([*weights, "--output", str(tmp_path / "a.tflite")]) == 1
    assert "want --output ending in .onnx or .pt2" in capsys.readouterr().err
