"""Checkpoints: weights that carry their model (safetensors) and the state a run resumes from."""

import json
import os
import pickle
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

KEY = "ssdkern"


@contextmanager
def atomic_write(path):
    """Yields a path beside `path` to write to; a failure leaves what was at `path` as it was."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def save_weights(path, model, class_names, **info):
    """Write a model's weights and what rebuilds and explains it, atomically.

    Args:
        path: the ``.safetensors`` file.
        model: an ``ssdkern.SSD``; its ``config()`` goes into the file.
        class_names: names of classes 1..C-1, in order.
        info: more JSON values, such as ``step`` and ``image_size``.

    Raises:
        ValueError: a weight is not finite; the file at ``path`` stays as it was.
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"want finite weights, got NaN or Inf in {name}")
    info = {"config": model.config(), "class_names": list(class_names), **info}
    with atomic_write(path) as part:
        save_file(tensors, part, metadata={KEY: json.dumps(info)})


def read_info(path):
    """The dict that `save_weights` stored: ``config``, ``class_names`` and the keywords."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path}: want a file of safetensors, got {error}") from error
    if KEY not in metadata:
        raise ValueError(f"want a checkpoint written by ssdkern.train, got {path}")
    return json.loads(metadata[KEY])


def want_device(device):
    """Raises ValueError where there is no such device on this machine."""
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"want a device of this machine, got {device}: {reason}") from error


def load_model(path, device="cpu"):
    """Rebuild a model from a weights file.

    Args:
        path: a file of `save_weights`.
        device: where the model goes; on CUDA its weights lie in channels_last.

    Returns:
        ``(model, info)``: the model in eval mode, and the dict of `read_info`.

    Raises:
        ValueError: the file was not written by ssdkern, or there is no such device.
    """
    from ssdkern.model import from_config

    want_device(device)
    info = read_info(path)
    model = from_config(info["config"])
    model.load_state_dict(load_file(path))
    layout = {"memory_format": torch.channels_last} if torch.device(device).type == "cuda" else {}
    return model.to(device, **layout).eval(), info


def load_matching(model, path):
    """Copy the weights of `path` whose name and shape `model` shares, to fine-tune from.

    Returns:
        list[str]: names of the model's entries that found no partner and keep their start values.
    """
    ours, theirs = model.state_dict(), load_file(path)
    fits = {n: t for n, t in theirs.items() if n in ours and ours[n].shape == t.shape}
    if not fits:
        raise ValueError(f"want weights that fit this model, got none in {path}")
    model.load_state_dict(fits, strict=False)
    return sorted(ours.keys() - fits.keys())


def save_state(path, state):
    """Write tensors and plain values for an exact resume, atomically."""
    with atomic_write(path) as part:
        torch.save(state, part)


def load_state(path):
    """Read a file of `save_state`; nothing but tensors and plain values is ever unpickled."""
    if not Path(path).exists():
        raise ValueError(f"want a run to resume, got no file {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path}: want a run to resume, got a damaged file ({error})") from error
