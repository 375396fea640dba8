"""The doctor names what runs, and finds an op that is wrong."""

import pytest
import torch

from ssdkern import doctor, ops, verify


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(doctor, "OPS", ("box_iou", "nms"))
    monkeypatch.setattr(doctor, "GOLDEN", {"nms": verify.GOLDEN["nms"]})


def test_table_names_every_op_and_every_reason(capsys):
    assert doctor.main([]) == 0
    text = capsys.readouterr().out
    for op in verify.OPS:
        assert f"\n{op} " in text
    assert f"torch {torch.__version__.partition('+')[0]}" in text
    assert "runs, chosen" in text
    if not torch.cuda.is_available():
        assert "native on cuda: there is no GPU that torch can use" in text


def test_host_module_is_named(monkeypatch):
    monkeypatch.setenv("SSDKERN_DISABLE", "native")
    wanted = "augmentation and evaluation: NumPy; C++ is switched off by SSDKERN_DISABLE"
    assert wanted in doctor.environment()


def test_verify_passes_here(few, capsys):
    assert doctor.main(["--verify"]) == 0
    assert "every op is right" in capsys.readouterr().out


def test_verify_finds_a_wrong_integer(few, monkeypatch, capsys):
    right = ops.nms
    monkeypatch.setattr(ops, "nms", lambda *args, **kwargs: right(*args, **kwargs).flip(0))
    assert doctor.main(["--verify"]) == 1
    assert "an op is wrong" in capsys.readouterr().out


@pytest.mark.parametrize("factor", [1 + 1e-5, float("nan")])
def test_verify_finds_a_wrong_value(few, monkeypatch, factor):
    right = ops.box_iou

    def off(*args, backend=None, **kwargs):
        result = right(*args, backend=backend, **kwargs)
        return result * factor if result.dtype == torch.float32 else result

    monkeypatch.setattr(ops, "box_iou", off)
    assert doctor.main(["--verify"]) == 1


def test_verify_finds_nan_beside_the_original(monkeypatch):
    assert verify.verify_golden("encode_boxes", "torch", "cpu") == 0
    monkeypatch.setattr(ops, "encode_boxes", lambda boxes, *_, **given: boxes * float("nan"))
    assert verify.verify_golden("encode_boxes", "torch", "cpu") > 0


@pytest.mark.parametrize("op", verify.OPS)
def test_inputs_are_the_same_for_a_seed(op):
    first, second = (verify.inputs(op, torch.Generator().manual_seed(3)) for _ in range(2))
    for a, b in zip(first[0], second[0], strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
