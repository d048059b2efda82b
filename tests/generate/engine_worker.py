"""One process of an engine on several: `… FOLDER TP PP OUT` writes greedy answers to the test's prompts, RANK.json."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from megatron_patch.generate.ranks import join, leave
from tests.generate.models import engine_of, greedy_answers, random_prompts

if __name__ == "__main__":
    folder, tensor, stages, out = sys.argv[1:]
    ranks = join(int(tensor), int(stages))
    answers = greedy_answers(engine_of(Path(folder), 24, 168, ranks), random_prompts(64, 800, 1, 40), 128)
    Path(out, f"{os.environ['RANK']}.json").write_text(json.dumps(answers))
    leave()
