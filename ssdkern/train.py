"""Train a detector on a VOC, COCO or YOLO folder.

``python -m ssdkern.train --data PATH --model ssd300_mobilenet_v2 --max-minutes 4 --output runs/a``
leaves in the output folder ``weights/{last,best}.safetensors``, ``state/last.pt`` to resume from,
``results.csv`` and ``args.yaml``. On a CPU a run with a budget of steps or epochs is the same every
time on the same machine, interrupted and resumed or not; on a GPU the pictures and their order are,
but not the weights, as libraries add up gradients in no fixed order. One with a budget of minutes
depends on the clock.

``torchrun --nproc-per-node K -m ssdkern.train`` spreads a step over K processes, of any number of
machines: K of them with batches of b have the gradients of one with K * b. Batch normalisation is
of each process's batch; ``--sync-norms`` makes it of all on GPUs.
"""

import argparse
import math
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import torch
import yaml
from safetensors import SafetensorError

import ssdkern
from ssdkern import weights, why_not
from ssdkern._backend import resolve
from ssdkern.checkpoint import atomic_write, load_matching, load_state, read_info, want_device
from ssdkern.data import check, message_of, open_dataset, summarize
from ssdkern.distributed import join, own_cores
from ssdkern.frozen import hold_pretrained
from ssdkern.memory import keep_freed_memory
from ssdkern.model import MODELS, build, from_config
from ssdkern.recipes import RECIPES
from ssdkern.trainer import NonFiniteLossError, Trainer

_DEFAULTS = {
    "recipe": "small",
    "split": "train",
    "eval_split": "val",
    "accumulate": 1,
    # an image costs a core about 3 ms, so 16 feed 5,000 a second; a CPU has the network to run, too
    "workers": min(16, own_cores()) if torch.cuda.is_available() else 1,
    "device": "cuda" if torch.cuda.is_available() else "cpu",
    "amp": "off",
    "seed": 0,
    "eval_every": 0,
}
_EPOCHS = 100  # where neither the caller nor the recipe says how long
_ABOVE_ZERO = ("batch_size", "accumulate", "epochs", "steps", "max_minutes", "lr", "image_size")
_FROM_ZERO = ("weight_decay", "clip_grad", "ema", "freeze", "eval_every", "workers", "seed")
# what may be another on the way than it was at the start
_FREE = {"output", "resume", "workers", "device", "epochs", "steps", "max_minutes", "eval_every"}
_FREE |= {"quiet", "dry_run", "backend", "compile", "cuda_graph"}


def parser():
    """The arguments of the command; an argument not given is not in the namespace."""
    args = argparse.ArgumentParser(
        prog="ssdkern train",
        description=__doc__.split("\n")[0],
        argument_default=argparse.SUPPRESS,
    )
    args.add_argument("--data", help="VOC, COCO or YOLO folder")
    args.add_argument("--output", required=True, help="folder of the run")
    args.add_argument("--model", help=f"{', '.join(MODELS)}, timm/NAME, torchvision/NAME (ssd300)")
    args.add_argument("--image-size", type=int, help="side of the input; default: the model's")
    args.add_argument(
        "--model-options",
        type=_arguments,
        metavar="YAML",
        help="arguments of the model's function, such as '{small_objects: true}'",
    )
    args.add_argument("--backbone-weights", help="file of ImageNet weights for the backbone")
    args.add_argument("--weights", help="checkpoint of this command to start from")
    args.add_argument("--recipe", choices=RECIPES, help="default: small, for small data")
    length = args.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=float, help=f"default: the recipe's, or {_EPOCHS}")
    length.add_argument("--steps", type=int)
    length.add_argument("--max-minutes", type=float, help="of training; the schedule follows")
    args.add_argument("--batch-size", type=int, help="images at once")
    args.add_argument("--accumulate", type=int, help="batches in a step (1)")
    args.add_argument("--lr", type=float, help="peak; default: the recipe's, by batch size")
    args.add_argument("--optimizer", choices=("sgd", "adamw"))
    args.add_argument("--weight-decay", type=float)
    args.add_argument("--clip-grad", type=float, help="largest norm of the gradients, 0: any")
    args.add_argument("--ema", type=float, help="decay of the averaged weights, 0: none")
    args.add_argument("--freeze", type=int, help="first layers of given weights not to train")
    args.add_argument(
        "--hold-norms",
        action=argparse.BooleanOptionalAction,
        help="with given weights: batch normalisation of the backbone stays as it is",
    )
    args.add_argument("--augment", choices=("ssd", "flip", "none"))
    args.add_argument("--split", help="part of the data to train on (train); several as a+b")
    args.add_argument("--eval-split", help="part to evaluate on (val); none: no evaluation")
    args.add_argument("--eval-every", type=int, help="epochs; default: ten times in a run")
    args.add_argument("--workers", type=int, help="processes that prepare pictures")
    args.add_argument("--device")
    args.add_argument("--backend", choices=("native", "triton", "torch"), help="of every op")
    args.add_argument("--amp", choices=("off", "bf16"), help="compute in bfloat16")
    args.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="torch.compile the network and loss",
    )
    args.add_argument(
        "--cuda-graph",
        action=argparse.BooleanOptionalAction,
        help="record a step once and replay it, on one GPU",
    )
    args.add_argument(
        "--sync-norms", action="store_true", help="batch normalisation over the GPUs of torchrun"
    )
    args.add_argument("--seed", type=int)
    args.add_argument("--resume", action="store_true", help="go on from state/last.pt in --output")
    args.add_argument("--dry-run", action="store_true", help="two steps, nothing kept")
    args.add_argument("--quiet", action="store_true", help="no progress bar")
    return args


def _arguments(text):
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"want YAML such as '{{width: 32}}', got {text!r}")
    return value


def settle(given, state=None, processes=1):
    """The settings of a run and its recipe, from what was given and, to resume, its state.

    Args:
        given: dict of the arguments given.
        state: of `ssdkern.checkpoint.load_state`, or None.
        processes: how many share a step.

    Returns:
        tuple[argparse.Namespace, Recipe]

    Raises:
        ValueError: an argument is out of range, or differs from that of the run to resume.
    """
    saved = dict(state["options"]) if state else {}
    for name, value in given.items():
        if state and name not in _FREE and saved.get(name) != value:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"want {option} {saved.get(name)} as the run had, got {value}")
    if {"epochs", "steps", "max_minutes"} & given.keys():
        saved |= {"epochs": None, "steps": None, "max_minutes": None}
    if state and saved.get("processes", 1) != processes:
        raise ValueError(
            f"want {saved.get('processes', 1)} processes, as the run had, got {processes}"
        )
    saved |= {"resume": False, "dry_run": False, "quiet": False, "processes": processes}
    every = dict.fromkeys(action.dest for action in parser()._actions if action.dest != "help")
    options = argparse.Namespace(**{**every, **_DEFAULTS, **saved, **given})
    if not options.data:
        raise ValueError("want --data with a folder, got none")
    _check_numbers(options)
    recipe = RECIPES[options.recipe]
    own = {field.name for field in fields(recipe)} & vars(options).keys() - {"batch_size", "steps"}
    changes = {name: getattr(options, name) for name in own if getattr(options, name) is not None}
    parts = options.accumulate * processes
    options.batch_size = options.batch_size or max(recipe.batch_size // parts, 1)
    together = options.batch_size * parts
    larger = together / recipe.batch_size
    # AdamW's steps do not grow with the batch as SGD's do, so it takes the square root
    larger = math.sqrt(larger) if (options.optimizer or recipe.optimizer) == "adamw" else larger
    changes.setdefault("lr", recipe.lr * larger)
    recipe = replace(recipe, **changes)
    if not (options.epochs or options.steps or options.max_minutes):
        options.steps = recipe.steps
        options.epochs = None if recipe.steps else _EPOCHS
    try:
        device = torch.device(options.device)
    except RuntimeError:
        raise ValueError(f"want --device cpu or cuda, got {options.device}") from None
    _check_device(options, device, processes)
    return options, recipe


def _check_numbers(options):
    for name in (*_ABOVE_ZERO, *_FROM_ZERO):
        value, low = getattr(options, name), "of 0 or more" if name in _FROM_ZERO else "above 0"
        if not (value is None or 0 < value < math.inf or (value == 0 and name in _FROM_ZERO)):
            raise ValueError(f"want a finite --{name.replace('_', '-')} {low}, got {value}")


def _check_device(options, device, processes):
    for name in ("sync_norms", "cuda_graph"):
        if getattr(options, name) and device.type != "cuda":
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"want --device cuda with {option}, got {device}")
    if processes > 1 and device.index is not None:
        raise ValueError(
            f"want --device {device.type}, of which each of {processes} processes takes its own, "
            f"got {device}"
        )
    if options.cuda_graph and processes > 1:
        raise ValueError(f"want one process with --cuda-graph, got {processes}")
    backend = options.backend or (options.model_options or {}).get("backend")
    for op in ("match_priors", "multibox_loss", "detect"):
        if backend and (reason := why_not(op, backend, device)):
            raise ValueError(f"want a --backend for {device}, got {backend}: {reason}")
        if options.cuda_graph and resolve(op, backend, device) == "torch":
            raise ValueError(f"want native or Triton kernels of {op} with --cuda-graph, got torch")


def make_model(options, recipe, num_classes):
    """The model of a run and its parameter groups."""
    torch.manual_seed(options.seed)
    name = options.model or "ssd300"
    if options.weights and not options.model:
        config = {**read_info(options.weights)["config"], "num_classes": num_classes}
        if options.image_size and options.image_size != config["image_size"]:
            config |= {"image_size": options.image_size, "prior_config": None}
        model = from_config(config)
    else:
        known = name in ("ssd300", "ssd512") and recipe.priors
        priors = {"prior_config": f"{name}-{recipe.priors}"} if known else {}
        chosen = {**priors, **(options.model_options or {})}
        try:
            model = build(name, num_classes, options.image_size, **chosen)
        except TypeError as error:
            raise ValueError(f"want --model-options of {name}, got {chosen}: {error}") from error
    pretrained = set()
    if options.backbone_weights:
        report = weights.load_backbone_weights(model.backbone, options.backbone_weights)
        print(report)
        pretrained = {f"backbone.{name}" for name in report.loaded}
        if recipe.freeze or recipe.hold_norms:
            hold_pretrained(model.backbone, model.image_size, recipe.freeze, recipe.hold_norms)
    if options.weights:
        left = load_matching(model, options.weights)
        print(f"{options.weights}: {len(left)} tensors not in the file {left[:4] if left else ''}")
    model.to(options.device, memory_format=torch.channels_last)
    slow = {id(p) for name, p in model.named_parameters() if name in pretrained}
    groups = []
    for group in model.parameter_groups(recipe.lr, recipe.weight_decay):
        parts = ([], [])
        for parameter in group["params"]:
            parts[id(parameter) in slow].append(parameter)
        for part, factor in zip(parts, (1.0, recipe.backbone_lr), strict=True):
            if part:
                groups.append({**group, "params": part, "lr": group["lr"] * factor})
    return model, groups


def _check_eval(eval_set, class_names):
    if not len(eval_set):
        raise ValueError("want pictures to evaluate on, got none; --eval-split none does without")
    if not set(eval_set.class_names) & set(class_names):
        raise ValueError(
            f"want some of {list(class_names)} to evaluate on, got {list(eval_set.class_names)}"
        )


def fit(options, recipe, train_set, eval_set, state=None, on_step=None, processes=None):
    """Train on data sets that are already open; see `main` for the rest.

    Args:
        options, recipe: of `settle`.
        train_set, eval_set: data sets; `eval_set` None: no evaluation.
        state: to resume from.
        on_step: see `Trainer.run`.
        processes: of `ssdkern.distributed.join`.

    Returns:
        tuple[int, Trainer]: exit code, and the trainer with its model.
    """
    want_device(options.device)
    if eval_set is not None:
        _check_eval(eval_set, train_set.class_names)
    if options.device == "cpu":
        keep_freed_memory()
    model, groups = make_model(options, recipe, len(train_set.class_names) + 1)
    if options.sync_norms:
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    trainer = Trainer(model, groups, recipe, train_set, eval_set, options, processes)
    if state:
        trainer.restore(state)
        print(f"resumed at step {trainer.step}, {trainer.elapsed / 60:.1f} minutes of training")
    count = sum(p.numel() for p in model.parameters())
    length = f"{options.max_minutes:g} minutes" if options.max_minutes else f"{trainer.steps} steps"
    print(
        f"{model.recipe['model']} at {model.image_size} px, {count:,} parameters, "
        f"on {options.device}; {length} of {trainer.images_per_step} images, lr {recipe.lr:g}",
        flush=True,
    )
    if options.dry_run:
        trainer.rehearse()
        return 0, trainer
    record = {**vars(options), "ssdkern": ssdkern.__version__, "torch": str(torch.__version__)}
    if not trainer.processes.rank:
        with atomic_write(trainer.output / "args.yaml") as part:
            part.write_text(yaml.safe_dump(record))
    code = trainer.run(on_step)
    trainer.finish()
    return code, trainer


def _run(given, processes):
    """From the arguments given to the end of the run; returns the exit code."""
    clock = time.perf_counter()
    file = Path(given["output"]) / "state/last.pt"
    if not given.get("resume") and file.exists() and not given.get("dry_run"):
        raise ValueError(f"want a new --output, or --resume, got a run in {given['output']}")
    state = load_state(file) if given.get("resume") else None
    options, recipe = settle(given, state, processes.size)
    train_set = open_dataset(options.data, options.split)
    print(summarize(train_set))
    check(train_set)
    eval_set = None
    if options.eval_split != "none":
        eval_set = open_dataset(options.data, options.eval_split)
        print(summarize(eval_set).split("\n")[0])
    code, trainer = fit(options, recipe, train_set, eval_set, state, processes=processes)
    if options.dry_run:
        return 0
    minutes = (time.perf_counter() - clock) / 60
    print(
        f"{'stopped' if code else 'done'}: {trainer.step} steps in {trainer.elapsed / 60:.1f} "
        f"minutes ({minutes:.1f} with all else), {trainer.output}/weights/last.safetensors"
    )
    if code:
        print(f"go on with: ssdkern train --resume --output {trainer.output}")
    elif trainer.best >= 0:
        print(f"best mAP@0.5 = {trainer.best:.3f}")
    return code


def main(argv=None):
    """Run the command; returns the exit code."""
    given = vars(parser().parse_args(argv))
    try:
        with join() as processes:
            return _run(given, processes)
    except (OSError, ValueError, NonFiniteLossError, SafetensorError) as error:
        print(f"ssdkern train: {message_of(error)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
