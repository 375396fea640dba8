"""Weights from elsewhere: ImageNet backbones and the public checkpoints of other SSD300 and 512."""

import logging
import pickle
import re
from typing import NamedTuple

import torch

_LOG = logging.getLogger("ssdkern")


class LoadReport(NamedTuple):
    """What a weight file gave.

    Attributes:
        file: its path.
        loaded: names of the model's tensors that it filled.
        ignored: names in the file without a place in the model.
        missing: names of the model's tensors that it did not fill.
    """

    file: str
    loaded: list
    ignored: list
    missing: list

    def __str__(self):
        text = f"{self.file}: loaded {len(self.loaded)} tensors"
        for what, names in (("ignored", self.ignored), ("not in the file", self.missing)):
            groups = sorted({".".join(name.split(".")[:2]) for name in names})
            if groups:
                more = ", ..." if len(groups) > 8 else ""
                text += f"; {what}: {len(names)} ({', '.join(groups[:8])}{more})"
        return text


def read_state(file):
    """The tensors of a weight file by name; never runs code from the file.

    Args:
        file: ``.safetensors``, or a ``torch.save`` of tensors and plain values alone: a state
            dict, or a checkpoint that has one under ``"model"`` or ``"state_dict"``.

    Raises:
        ValueError: the file holds no state dict, or more than tensors and plain values.
    """
    if str(file).endswith(".safetensors"):
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{file}: want a file of safetensors, got {error}") from error
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        got = str(error) or "nothing"
        raise ValueError(f"{file}: want a file of tensors and plain values, got {got}") from error
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    tensors = {}
    if isinstance(state, dict):
        tensors = {name: each for name, each in state.items() if isinstance(each, torch.Tensor)}
    if not tensors:
        raise ValueError(f"{file}: want a state dict, got a {type(state).__name__} without tensors")
    return {name.removeprefix("module."): each for name, each in tensors.items()}


def _extra(first, offset):
    """Replacement for the pair of convolutions of an extra layer: group 1 counts the pairs."""
    return lambda found: f"backbone.extras.{2 * (int(found[1]) - first) + offset}."


# a name that only this layout has, then what its names become here
_LAYOUTS = {
    "torchvision": (
        "backbone.scale_weight",
        (r"backbone\.scale_weight$", "backbone.l2norm.weight"),
        (r"backbone\.features\.", "backbone.trunk."),
        (r"backbone\.extra\.0\.1\.", "backbone.trunk.24."),
        (r"backbone\.extra\.0\.3\.", "backbone.trunk.26."),
        (r"backbone\.extra\.0\.5\.", "backbone.trunk.28."),
        (r"backbone\.extra\.0\.7\.1\.", "backbone.trunk.31."),
        (r"backbone\.extra\.0\.7\.3\.", "backbone.trunk.33."),
        (r"backbone\.extra\.([1-9])\.0\.", _extra(1, 0)),
        (r"backbone\.extra\.([1-9])\.2\.", _extra(1, 1)),
        (r"head\.regression_head\.module_list\.", "loc."),
        (r"head\.classification_head\.module_list\.", "conf."),
    ),
    "amdegroot": (
        "L2Norm.weight",
        (r"vgg\.", "backbone.trunk."),
        (r"L2Norm\.", "backbone.l2norm."),
        (r"extras\.", "backbone.extras."),
    ),
    "lufficc": (
        "backbone.l2_norm.weight",
        (r"backbone\.vgg\.", "backbone.trunk."),
        (r"backbone\.l2_norm\.", "backbone.l2norm."),
        (r"box_head\.predictor\.reg_headers\.", "loc."),
        (r"box_head\.predictor\.cls_headers\.", "conf."),
    ),
    "mmdet": (
        "neck.l2_norm.weight",
        (r"backbone\.features\.", "backbone.trunk."),
        (r"neck\.l2_norm\.", "backbone.l2norm."),
        (r"neck\.extra_layers\.(\d)\.0\.conv\.", _extra(0, 0)),
        (r"neck\.extra_layers\.(\d)\.1\.conv\.", _extra(0, 1)),
        (r"bbox_head\.reg_convs\.(\d)\.0\.", r"loc.\1."),
        (r"bbox_head\.cls_convs\.(\d)\.0\.", r"conf.\1."),
    ),
}


def _rename(name, rules):
    for pattern, replacement in rules:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name, count=1)
    return name


def load_weights(model, file, *, heads=True):
    """Fills an SSD from a weight file: of this library, or a public one of SSD300 and SSD512.

    The layouts of torchvision, amdegroot, lufficc and mmdet (whose background class comes last,
    and first here) are told apart by their names. For the same detections as there, build the
    model with `like`, see `ssdkern.model.ssd300`.

    Args:
        model: an SSD.
        file: see `read_state`.
        heads: False leaves the heads as they are, to learn other classes.

    Returns:
        LoadReport

    Raises:
        ValueError: a tensor of the model is not in the file, or has another shape there.
    """
    state = read_state(file)
    layout = next((name for name, (mark, *_) in _LAYOUTS.items() if mark in state), None)
    if layout is not None:
        rules = _LAYOUTS[layout][1:]
        state = {_rename(name, rules): value for name, value in state.items()}
    if layout == "mmdet":
        classes = model.num_classes
        for name in state:
            if name.startswith("conf."):
                channels = state[name].unflatten(0, (-1, classes))
                state[name] = channels.roll(1, 1).flatten(0, 1)
    own = model.state_dict()
    if not heads:
        own = {name: each for name, each in own.items() if not name.startswith(("loc.", "conf."))}
    wrong = [
        f"{name} {tuple(each.shape)}, got {tuple(state[name].shape) if name in state else 'none'}"
        for name, each in own.items()
        if name not in state or state[name].shape != each.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"{file}: want {'; '.join(wrong[:3])}{more}")
    return _fill(model, {name: state[name] for name in own}, file, sorted(state.keys() - own))


def load_backbone_weights(backbone, file):
    """Fills what it can of a backbone from a weight file.

    Args:
        backbone: a VGG16, or a FeatureBackbone around the model of torchvision or timm that the
            file belongs to, or any module with the names of the file.
        file: see `read_state`. For VGG16 a reduced net (names ``0.weight`` to ``33.bias``), or
            torchvision's ``features.*``; of a full net's fc6 and fc7 every fourth channel and
            every third tap is taken, where they are finite. Weights of a whole SSD of this
            library work too.

    Returns:
        LoadReport

    Raises:
        ValueError: nothing in the file fits.
    """
    state = read_state(file)
    own = backbone.state_dict()
    found, ignored = {}, []
    for name, value in (state | _reduced_fc(state)).items():
        bare = name.removeprefix("backbone.")
        names = (bare, f"body.{bare}", f"trunk.{bare}", f"trunk.{bare.removeprefix('features.')}")
        target = next((each for each in names if each in own), None)
        if target is not None and own[target].shape == value.shape:
            found[target] = value
        else:
            ignored.append(name)
    if not found:
        raise ValueError(
            f"{file}: want weights of {type(backbone).__name__} such as {list(own)[:2]}, "
            f"got {list(state)[:2]}"
        )
    return _fill(backbone, found, file, ignored)


def _reduced_fc(state):
    """fc6 and fc7 of a full VGG16 as the convolutions of the reduced one; empty if not there."""
    names = ("classifier.0.weight", "classifier.0.bias", "classifier.3.weight", "classifier.3.bias")
    if any(name not in state for name in names) or state[names[0]].shape != (4096, 25088):
        return {}
    fc6, fc6_bias, fc7, fc7_bias = (state[name] for name in names)
    if not fc6.isfinite().all():
        return {}
    return {
        "trunk.31.weight": fc6.view(4096, 512, 7, 7)[::4, :, ::3, ::3],
        "trunk.31.bias": fc6_bias[::4],
        "trunk.33.weight": fc7[::4, ::4, None, None],
        "trunk.33.bias": fc7_bias[::4],
    }


def _fill(module, tensors, file, ignored):
    missing = module.load_state_dict(tensors, strict=False).missing_keys
    report = LoadReport(str(file), sorted(tensors), ignored, missing)
    _LOG.info("%s", report)
    return report
