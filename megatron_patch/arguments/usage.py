"""What a script says when its arguments are too few or too many: `python -m megatron_patch.arguments.usage SCRIPT
WORD…`.

launch.sh calls it. If Python cannot run it, launch.sh prints the documented lines itself. Imports no torch.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from megatron_patch.arguments.argument import Script
from megatron_patch.arguments.command_line import asked_language
from megatron_patch.arguments.commands import example
from megatron_patch.arguments.original import original_command
from megatron_patch.arguments.tables import SCRIPTS
from megatron_patch.formats.json_files import one_line
from megatron_patch.language.choice import ask
from megatron_patch.language.sentences import fill

_DOCUMENTED = re.compile(r"^[A-Za-z][A-Za-z0-9_]*=\$[0-9{].*$", re.MULTILINE)


def usage_text(script: Script, path: str, words: list[str]) -> str:
    """The documented lines of the script at `path`, a sentence about what is wrong with `words`, and an example."""
    lines = [fill("Usage: sh {} ARGUMENT...", path), ""]
    lines += _DOCUMENTED.findall(Path(path).read_text(encoding="utf-8"))
    lines += ["", fill("Flags may follow the last one: --flag value ...; --help lists them."), ""]
    lines += [fill("An example that works as it stands:"), f"  {example(script)}", "", _wrong(script, path, words)]
    return "\n".join(lines)


def _wrong(script: Script, path: str, words: list[str]) -> str:
    original = original_command(script, words)
    if original is not None:
        return f"{script.name}: {original.sentence}"
    wanted = len(script.documented)
    given = next((place for place, word in enumerate(words) if word.startswith("--") and place < wanted), len(words))
    if given < wanted:
        following = script.documented[given].label
        return fill("{} takes {} arguments and got {}; write the missing ones, from {} on.", path, wanted, given, following)
    extra = one_line(words[wanted])
    template = "{} takes {} arguments and got {}; number {} is '{}', which is no --flag: remove it."
    return fill(template, path, wanted, given, wanted + 1, extra)


def main(argv: list[str]) -> int:
    """Print the text. Returns 0; 1 if there is no script of that name."""
    path, words = argv[0], argv[1:]
    script = next((one for one in SCRIPTS if one.path and one.name == Path(path).name), None)
    if script is None:
        return 1
    ask(asked_language(words))
    print(usage_text(script, path, words))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
