"""Checkpoints: what is written comes back, or the old file stays."""

import pytest
import torch

from ssdkern.checkpoint import (
    atomic_write,
    load_matching,
    load_model,
    load_state,
    read_info,
    save_state,
    save_weights,
)
from ssdkern.model import build


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build("ssd_tiny", 3, 64, width=16)


def test_a_model_comes_back_from_its_file(model, tmp_path):
    path = tmp_path / "weights/last.safetensors"
    save_weights(path, model, ["cat", "dog"], step=7, image_size=64)
    loaded, info = load_model(path)
    assert info["class_names"] == ["cat", "dog"] and info["step"] == 7
    assert not loaded.training
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        for got, want in zip(loaded.heads(images), model.eval().heads(images), strict=True):
            assert torch.equal(got, want)


def test_channels_last_weights_come_back(model, tmp_path):
    path = tmp_path / "last.safetensors"
    save_weights(path, model.to(memory_format=torch.channels_last), ["a", "b"])
    loaded, _ = load_model(path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_on_a_gpu_weights_lie_in_channels_last(model, tmp_path, monkeypatch):
    path, to, moves = tmp_path / "last.safetensors", torch.nn.Module.to, []

    def watched(self, device, **layout):
        moves.append(device)
        return to(self, "cpu", **layout)

    save_weights(path, model.to(memory_format=torch.contiguous_format), ["a", "b"])
    monkeypatch.setattr(torch.nn.Module, "to", watched)
    monkeypatch.setattr("ssdkern.checkpoint.want_device", lambda device: None)
    for device, last in (("cpu", False), ("cuda:1", True)):
        weight = load_model(path, device)[0].conf[0].weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == last
    assert moves == ["cpu", "cuda:1"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="half way"), atomic_write(path) as part:
        part.write_text("new")
        raise RuntimeError("half way")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_poisoned_model_is_not_saved(model, tmp_path):
    path = tmp_path / "last.safetensors"
    save_weights(path, model, ["a", "b"])
    before = path.read_bytes()
    poisoned = build("ssd_tiny", 3, 64, width=16)
    with torch.no_grad():
        poisoned.conf[0].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"got NaN or Inf in conf\.0\.weight"):
        save_weights(path, poisoned, ["a", "b"])
    assert path.read_bytes() == before


def test_weights_of_other_classes_fit_but_for_the_heads(model, tmp_path):
    path = tmp_path / "last.safetensors"
    save_weights(path, model, ["a", "b"])
    other = build("ssd_tiny", 5, 64, width=16)
    left = load_matching(other, path)
    assert left and all(name.startswith("conf.") for name in left)
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(other.backbone.state_dict()[name], tensor), name


def test_state_holds_only_tensors_and_plain_values(tmp_path):
    path = tmp_path / "last.pt"
    save_state(path, {"step": 3, "rng": torch.get_rng_state(), "rows": [{"a": 1.5}]})
    assert load_state(path)["rows"] == [{"a": 1.5}]
    save_state(path, {"code": test_state_holds_only_tensors_and_plain_values})
    with pytest.raises(ValueError, match="Weights only load failed"):
        load_state(path)
    for content in (b"", b"PK\x03\x04 and so on"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"last\.pt: want a run to resume, got a damaged file"):
            load_state(path)


def test_files_of_others_are_refused(model, tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"want a checkpoint written by ssdkern\.train"):
        read_info(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="want weights that fit"):
        load_matching(model, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="want a run to resume"):
        load_state(tmp_path / "none.pt")
    (tmp_path / "a.safetensors").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"a\.safetensors: want a file of safetensors, got"):
        read_info(tmp_path / "a.safetensors")


@pytest.mark.parametrize("device", ["meta", "cuda:77", "abacus"])
def test_a_device_that_is_not_here_is_refused(model, tmp_path, device):
    save_weights(tmp_path / "a.safetensors", model, ["a", "b"])
    with pytest.raises(ValueError, match=f"want a device of this machine, got {device}: "):
        load_model(tmp_path / "a.safetensors", device)
