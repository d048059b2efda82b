"""`megatron-patch COMMAND …`, which pip installs: each command becomes the module that the documented script starts.

    megatron-patch pretrain --model-size=7B --data-path=corpus_text_document …

takes the flags that run_pretrain_megatron_llama.sh hands on. What only a checkout has is filled in where it is not
given: MEGATRON_PATCH_PATH is the installed package, MEGATRON_PATH none, and ENV dsw. Imports no torch.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from megatron_patch import __version__
from megatron_patch.folders.checkout import ROOT
from megatron_patch.language.choice import spoken
from megatron_patch.language.sentences import fill

_ENGINE = "--megatron-path=none"
_HERE = f"--megatron-patch-path={ROOT}"


@dataclass(frozen=True)
class Command:
    """It becomes `python -m module *words *flags`, behind those of `defaults` that the user did not give."""

    module: str
    en: str
    zh: str
    words: tuple[str, ...] = ()
    defaults: tuple[str, ...] = ()

    def line(self, flags: list[str]) -> list[str]:
        """The command line behind python."""
        given = {flag.partition("=")[0] for flag in flags}
        filled = [default for default in self.defaults if default.partition("=")[0] not in given]
        return ["-m", self.module, *self.words, *([] if given & {"--help", "-h"} else filled), *flags]


def _launched(task: str, en: str, zh: str) -> Command:
    return Command("megatron_patch.launch", en, zh, (task,), ("--env=dsw", _ENGINE, _HERE))


COMMANDS = {
    "pretrain": _launched("pretrain", "continued pre-training", "继续预训练"),
    "finetune": _launched("finetune", "supervised fine-tuning", "有监督微调"),
    "finetune-with-ga": Command(
        "megatron_patch.launch",
        "supervised fine-tuning by iterations of a global batch",
        "按迭代数有监督微调，指定全局 batch",
        ("finetune_with_ga",),
        ("--env=dsw", _HERE),
    ),
    "generate": _launched("generate", "text from a checkpoint", "文本生成"),
    "evaluate": _launched("evaluate", "loss and perplexity of a checkpoint", "模型评估"),
    "plan": Command("megatron_patch.cli.plan", "memory, speed and traffic of a training, on paper", "训练前估算显存、速度与通信"),
    "chat": Command("megatron_patch.launch", "a conversation with a model on the terminal", "在终端与模型对话", ("chat",)),
    "serve": Command("megatron_patch.launch", "a model behind OpenAI's interface", "以 OpenAI 兼容接口提供模型", ("serve",)),
    "convert": Command("megatron_patch.cli.convert", "Hugging Face ↔ Megatron checkpoints", "模型格式转换", defaults=(_ENGINE,)),
    "preprocess": Command("megatron_patch.cli.preprocess", "raw text → .bin/.idx, or fine-tuning data", "预训练与微调数据处理"),
    "merge-data": Command("megatron_patch.cli.merge_data", "several .bin/.idx pairs into one", "合并多对 .bin/.idx"),
    "report": Command("megatron_patch.cli.report", "one page of a run, or of several side by side", "把训练画成一个网页文件"),
    "inspect": Command(
        "megatron_patch.cli.inspection", "what is in a data file or a checkpoint", "查看数据文件或 checkpoint 的内容"
    ),
}


def usage() -> str:
    """The commands, a line each, in the user's language."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.zh if spoken() == 'zh' else command.en}" for name, command in COMMANDS.items()]
    return "\n".join(
        (
            fill("Usage: megatron-patch COMMAND --flag=value ..."),
            "",
            *lines,
            "",
            fill("megatron-patch COMMAND --help lists its arguments and flags; --version prints the version."),
        )
    )


def main() -> None:
    """Become the command that is asked for.

    Raises:
        SystemExit: 0 after --help or --version; 2 after a sentence about a command that there is not.
    """
    arguments = sys.argv[1:]
    asked = arguments[0] if arguments else ""
    if asked in ("--help", "-h"):
        print(usage())
    elif asked == "--version":
        print(f"megatron-patch {__version__}")
    elif asked not in COMMANDS:
        got = fill("got {}", repr(asked[:100])) if arguments else fill("got no command")
        said = fill("megatron-patch: {}; write one of {}.", got, ", ".join(COMMANDS))
        print(f"{usage()}\n\n{said}", file=sys.stderr)
        sys.exit(2)
    else:
        # A folder megatron_patch/ where the user stands, the original's for example, is not taken for this one.
        environment = {**os.environ, "PYTHONSAFEPATH": "1"}
        if (ROOT / "pyproject.toml").is_file():  # a checkout, which need not be installed
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        os.execve(sys.executable, [sys.executable, *COMMANDS[asked].line(arguments[1:])], environment)


if __name__ == "__main__":
    main()
