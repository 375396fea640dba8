"""The command: it finds its sub-commands, and only the one asked for is imported."""

import importlib
import subprocess
import sys

import pytest

from ssdkern import cli


def test_help_lists_every_command(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name, capsys):
    assert callable(importlib.import_module(f"ssdkern.{name}").main)
    with pytest.raises(SystemExit) as leave:
        cli.main([name, "--help"])
    assert leave.value.code == 0
    assert f"ssdkern {name}" in capsys.readouterr().out


def test_unknown_commands_are_named(capsys):
    assert cli.main(["trian"]) == 2
    assert "want a command, got 'trian'" in capsys.readouterr().err


def test_the_demo_says_what_is_wrong(capsys, tmp_path):
    assert cli.main(["demo", "--minutes", "0", "--output", str(tmp_path)]) == 1
    assert "ssdkern demo: want a finite --max-minutes above 0, got 0.0" in capsys.readouterr().err


def test_help_imports_no_command():
    code = (
        "import sys; from ssdkern import cli; cli.main(['--help']);"
        "sys.exit(', '.join({'torchvision', 'ssdkern.train'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
