"""The `ssdkern` command: one sub-command per module, imported only when it is asked for."""

import importlib
import sys

COMMANDS = {
    "train": "train a detector on a VOC, COCO or YOLO folder",
    "evaluate": "mAP of a trained detector on a data set",
    "predict": "draw what a trained detector sees in pictures",
    "export": "a trained detector as an ONNX file or a program of torch.export",
    "doctor": "which kernels run on this machine, and why others do not",
    "demo": "train a small detector on synthetic scenes, from nothing",
}


def usage():
    width = max(map(len, COMMANDS))
    rows = (f"  {name:{width}}  {what}" for name, what in COMMANDS.items())
    return "\n".join(
        ["usage: ssdkern COMMAND ...", "", *rows, "", "ssdkern COMMAND --help tells the rest."]
    )


def main(argv=None):
    """Run ``ssdkern COMMAND ...``; returns the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        import ssdkern

        print(ssdkern.__version__)
        return 0
    if argv[0] not in COMMANDS:
        print(f"{usage()}\n\nssdkern: want a command, got {argv[0]!r}", file=sys.stderr)
        return 2
    return importlib.import_module(f"ssdkern.{argv[0]}").main(argv[1:])


if __name__ == "__main__":
    sys.exit(main())
