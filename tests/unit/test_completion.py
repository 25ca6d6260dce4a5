"""The completions for shells have the commands and options of the parser."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dnsprobe import cli
from dnsprobe.treeview.aggregate import LABELS

FOLDER = Path(__file__).parents[2] / "packaging" / "completion"
BASH, ZSH, FISH = FOLDER / "bash/dnsprobe", FOLDER / "zsh/_dnsprobe", FOLDER / "fish/dnsprobe.fish"


def subparsers() -> argparse._SubParsersAction[argparse.ArgumentParser]:
    (found,) = [action for action in cli._parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return found


def commands() -> dict[str, argparse.ArgumentParser]:
    return dict(subparsers().choices)


def helps() -> dict[str, str]:
    return {choice.dest: str(choice.help) for choice in subparsers()._choices_actions}


def options(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings if option.startswith("--")}


def completed(*words: str) -> set[str]:
    """Return what bash offers for the last word."""
    line = " ".join(f"'{word}'" for word in words)
    script = (
        f'. {BASH}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _dnsprobe; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return set(done.stdout.split())


def test_bash_offers_every_command_and_option() -> None:
    assert completed("dnsprobe", "") == {*commands(), *options(cli._parser())}
    assert completed("dnsprobe", "wa") == {"watch"}
    for name, parser in commands().items():
        assert completed("dnsprobe", name, "") == options(parser)
        for option in options(parser) & {"--config", "--web.config.file"}:
            assert completed("dnsprobe", name, option, str(BASH)[:-1]) == {str(BASH)}
    (targets,) = [action.choices for action in commands()["run"]._actions if action.dest == "log_target"]
    assert completed("dnsprobe", "run", "--log-target", "") == set(targets or ())
    assert completed("dnsprobe", "run", "--listen", "") == set()
    assert completed("dnsprobe", "tree", "--by", "") == set(LABELS)


def test_the_parser_knows_every_label() -> None:
    (choices,) = [action.choices for action in commands()["tree"]._actions if action.dest == "by"]
    assert tuple(choices or ()) == LABELS


def test_zsh_knows_every_command_and_option() -> None:
    text = ZSH.read_text("utf-8")
    assert dict(re.findall(r"^\t\t'(\w+):(.+)'$", text, re.MULTILINE)) == helps()
    shared = set(re.findall(r"(--[a-z.-]+)\[", re.findall(r"config=\((.*)\)$", text, re.MULTILINE)[0]))
    for name, parser in commands().items():
        (own,) = re.findall(rf"^\t\t{name}\)(.*?);;$", text, re.MULTILINE | re.DOTALL)
        assert "$config" in own
        assert shared | set(re.findall(r"'(?:\(--[a-z]+\)|\*)?(--[a-z.-]+)\[", own)) == options(parser)
    assert "(auto journal console)" in text
    assert f"({' '.join(LABELS)})" in text


def test_fish_knows_every_command_and_option() -> None:
    text = FISH.read_text("utf-8")
    assert dict(re.findall(r"-a (\w+) -d '(.+)'$", text, re.MULTILINE)) == helps()
    of_all = {"--help"} | {"--" + option for option in re.findall(r'"__fish_seen.* -l (\S+)', text)}
    for name, parser in commands().items():
        own = re.findall(rf"-n '__fish_seen_subcommand_from [^']*\b{name}\b[^']*' -l (\S+)", text)
        assert of_all | {f"--{option}" for option in own} == options(parser)
    assert "-a 'auto journal console'" in text
    assert f"-a '{' '.join(LABELS)}'" in text


@pytest.mark.parametrize(("shell", "path"), [("bash", BASH), ("zsh", ZSH), ("fish", FISH)])
def test_the_shell_can_read_it(shell: str, path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed: apt install {shell}")
    done = subprocess.run([shell, "-n", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
