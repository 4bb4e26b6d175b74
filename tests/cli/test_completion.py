"""What the shells make of the completion scripts."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests import tools
from tests.cli.conftest import Command
from tornado_persist.cli.program import parser


def offered(script: Path, *words: str) -> set[str]:
    """What bash offers for the last of these words."""
    line = f"""
        source {script}
        COMP_WORDS=({" ".join(f"'{word}'" for word in words)}) COMP_CWORD={len(words) - 1}
        $(complete -p persistd | sed 's/.*-F \\([^ ]*\\).*/\\1/') persistd '{words[-1]}' '{words[-2]}'
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True, cwd=script.parent)
    return set(done.stdout.split())


@pytest.fixture
def script(command: Command, tmp_path: Path) -> Path:
    code, said, _ = command("completion", "bash")
    assert code == 0
    file = tmp_path / "persistd.bash"
    file.write_text(said)
    return file


def test_bash_offers_commands_their_commands_and_options(script: Path) -> None:
    assert {"run", "stats", "flush", "journal", "rejected", "import", "completion"} <= offered(script, "persistd", "")
    assert offered(script, "persistd", "st") == {"start", "stop", "status", "stats"}
    assert {"ls", "show", "verify", "export"} <= offered(script, "persistd", "journal", "")
    assert {"--kind", "--code", "--edit", "--overwrite"} <= offered(script, "persistd", "rejected", "retry", "--")
    assert {"--kind", "--session", "--since", "--output"} <= offered(script, "persistd", "export", "--")
    assert offered(script, "persistd", "get", "") >= {"session", "task"}
    assert "persistd.bash" in offered(script, "persistd", "import", "pers")


def test_zsh_can_read_its_script(command: Command, tmp_path: Path) -> None:
    code, said, _ = command("completion", "zsh")
    assert code == 0
    assert said.startswith("#compdef persistd\n")
    file = tmp_path / "_persistd"
    file.write_text(said)
    assert subprocess.run([tools.require("zsh"), "-n", file], capture_output=True, check=False).returncode == 0


def test_a_wrong_configuration_does_not_matter_and_another_shell_is_refused(command: Command, tmp_path: Path) -> None:
    (tmp_path / "persistd.toml").write_text("[server]\nprot = 1\n")
    assert command("completion", "bash").code == 0
    assert command("completion", "fish").code == 2


def test_every_command_has_a_help_of_its_own(command: Command) -> None:
    text = parser().format_help()
    for words in (["stats"], ["flush"], ["import"], ["journal", "ls"], ["rejected", "retry"], ["completion"]):
        assert words[0] in text
        code, said, _ = command(*words, "--help")
        assert code == 0
        assert said.startswith(f"usage: persistd {' '.join(words)} ")
