"""Weights from elsewhere: ImageNet backbones and the public checkpoints of other SSDs."""


import torch


def read_state(file):
    """The tensors of a weight file by name; never runs code from the file.

    Args:
        file: a ``.safetensors`` file, or one of ``torch.save`` that holds tensors and plain
            values alone: a state dict, or a checkpoint with one under ``model`` or ``state_dict``.

    Raises:
        RuntimeError: the file holds no state dict.
    """
    if str(file).endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(file)
    state = torch.load(file, map_location="cpu", weights_only=True)
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise RuntimeError(f"{file}: want a state dict, got {type(state).__name__}")
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def load_backbone_weights(backbone, file):
    """Fills a backbone from a weight file where names and shapes agree."""
    state = read_state(file)
    own = backbone.state_dict()
    found = {}
    for name, value in state.items():
        for prefix in ("", "body.", "trunk."):
            target = prefix + name
            if target in own and own[target].shape == value.shape:
                found[target] = value
    if not found:
        raise RuntimeError(f"{file}: want weights of {type(backbone).__name__}, got none that fit")
    backbone.load_state_dict(found, strict=False)
    return found
