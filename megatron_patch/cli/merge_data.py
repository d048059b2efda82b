"""Join `.bin`/`.idx` pairs: `python -m megatron_patch.cli.merge_data PREFIX ... --output-prefix OUTPUT`.

Exit status: 0, or 2 with a sentence where the pairs cannot be joined.
"""

from __future__ import annotations

import sys

from megatron_patch.arguments.merge import read
from megatron_patch.errors import UserError, print_any_text, sentence
from megatron_patch.language.sentences import fill, in_language
from megatron_patch.preparation.merge import merge


def main(argv: list[str]) -> int:
    """Join what `argv` names, and say what the pair holds. The exit status."""
    print_any_text()
    job = read(argv)
    try:
        counts = merge(job.prefix, job.output_prefix, job.overwrite)
    except (UserError, OSError) as error:
        print(fill("error: {}", in_language(sentence(error))), file=sys.stderr)
        return 2
    print("\n".join(map(in_language, counts.lines(job.output_prefix))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
