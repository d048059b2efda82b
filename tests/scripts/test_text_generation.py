"""run_text_generation_megatron_llama.sh as a user runs it: files, the terminal, several processes, wrong arguments."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import pytest

from megatron_patch.arguments import generation_list
from megatron_patch.arguments.generation import read_generation
from megatron_patch.data.prompts import encode_alpaca
from megatron_patch.data.tokenizer import load_tokenizer
from megatron_patch.errors import UserError
from megatron_patch.generate.answers_file import read_queries
from tests.generate.models import transformers_answers
from tests.launching import ENGINE, GENERATE, GOLDEN, ROOT, convert, environment, run, run_forked

NEW = 20
QUERIES = ["def f(x):", "The import statement", "语言", "the import " * 40, "print('hello')", "x"]
ARGUMENTS = dict(
    ENV="dsw", MEGATRON_PATH=ENGINE, MEGATRON_PATCH_PATH=str(ROOT), CHECKPOINT_PATH=str(GOLDEN / "hf_gqa"), MODEL_SIZE="auto",
    TP=1, BS=2, SEQ_LEN=128, PAD_LEN=80, EXTRA_VOCAB_SIZE=0, PR="fp32", TOP_K=1, INPUT_SEQ_LEN=64, OUTPUT_SEQ_LEN=NEW,
    INPUT_FILE="", OUTPUT_FILE="", TOP_P=0, TEMPERATURE=1, REPETITION_PENALTY=1,
)  # fmt: skip


def words(**changed):
    return list({**ARGUMENTS, **changed}.values())


@pytest.fixture(scope="module")
def expected(tokenizer):
    """transformers' greedy answers as text, up to the end token, to prompts cut as INPUT_SEQ_LEN says."""
    prompts = []
    for query in QUERIES:
        ids = [tokenizer.bos, *tokenizer.tokenize(query)]
        prompts.append(ids if len(ids) <= 64 else [ids[0], *ids[-63:]])
    assert [len(prompt) == 64 for prompt in prompts] == [False, False, False, True, False, False]
    texts = []
    for prompt, answer in zip(prompts, transformers_answers(GOLDEN / "hf_gqa", prompts, NEW)):
        answer = answer[: answer.index(tokenizer.eos)] if tokenizer.eos in answer else answer
        before = tokenizer.detokenize(prompt)
        texts.append(tokenizer.detokenize(prompt + answer)[len(before) :])
    return texts


@pytest.fixture
def queries(tmp_path):
    path = tmp_path / "查询 $(x).jsonl"
    path.write_text("".join(json.dumps({"query": query}, ensure_ascii=False) + "\n" for query in QUERIES), encoding="utf-8")
    return path


def responses(path):
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["index"] for line in lines] == list(range(len(QUERIES)))
    assert [line["query"] for line in lines] == QUERIES
    return [line["response"] for line in lines]


def test_a_file_of_queries_and_going_on_after_a_kill(queries, tmp_path, expected):
    """The output as a killed run leaves it: some answers out of order, a line cut off, and a second replica's file."""
    out = tmp_path / "out" / "answers.jsonl"
    first = run(GENERATE, *words(INPUT_FILE=queries, OUTPUT_FILE=out))
    assert first.returncode == 0, first.stdout
    assert responses(out) == expected
    assert "1 of 6 prompts were longer than INPUT_SEQ_LEN = 64" in first.stdout
    lines = out.read_text(encoding="utf-8").splitlines(keepends=True)
    marked = json.loads(lines[4]) | {"response": "kept"}
    out.write_text(lines[2] + json.dumps(marked) + "\n" + lines[0][:20], encoding="utf-8")
    (out.parent / "answers.jsonl.part1").write_text(lines[1], encoding="utf-8")
    again = run_forked(GENERATE, *words(INPUT_FILE=queries, OUTPUT_FILE=out), processes=2)  # two replicas
    assert again.returncode == 0, again.stdout
    assert "3 of 6 queries are answered" in again.stdout
    assert responses(out) == [*expected[:4], "kept", expected[5]]
    assert [path.name for path in out.parent.iterdir()] == ["answers.jsonl"]


def test_a_checkpoint_of_megatron_in_two_stages_and_a_stop_word(queries, tmp_path, expected):
    megatron = convert(GOLDEN / "hf_gqa", tmp_path / "megatron", tp=2)
    word = expected[1][3:6]
    arguments = words(CHECKPOINT_PATH=megatron, INPUT_FILE=queries, OUTPUT_FILE=tmp_path / "answers")
    made = run_forked(GENERATE, *arguments, "--pipeline-model-parallel-size", 2, "--stop", word, processes=2)
    assert made.returncode == 0, made.stdout
    assert responses(tmp_path / "answers") == [text.partition(word)[0] for text in expected]


def test_the_terminal_answers_in_the_template(tmp_path):
    """Two questions of one conversation in the Alpaca form, which has a place for earlier turns."""
    tokenizer = load_tokenizer(GOLDEN / "hf_gqa")
    record = {"instruction": "Say more", "history": [], "content": ""}
    answers = []
    for question in ("Say more", "and now"):
        record["instruction"] = question
        (ids,) = transformers_answers(GOLDEN / "hf_gqa", [encode_alpaca(record, tokenizer)[0][:-1]], NEW)
        ids = ids[: ids.index(tokenizer.eos)] if tokenizer.eos in ids else ids
        before = encode_alpaca(record, tokenizer)[0][:-1]
        answers.append(tokenizer.detokenize(before + ids)[len(tokenizer.detokenize(before)) :])
        record["history"] = [*record["history"], [question, answers[-1].strip()]]
    arguments = words(INPUT_FILE="none", OUTPUT_FILE="-", SEQ_LEN=256, INPUT_SEQ_LEN=200)
    command = ["dash", str(GENERATE), *map(str, arguments), "--template", "alpaca"]
    said = subprocess.run(
        command, env=environment(), cwd=tmp_path, input="Say more\n\nand now\n/exit\nnot asked\n", text=True, capture_output=True
    )
    assert said.returncode == 0, said.stderr
    assert "".join(answer + "\n" for answer in answers) in said.stdout


def flags(**changed):
    """The flags that the script hands on."""
    values = {**ARGUMENTS, "INPUT_FILE": "none", "OUTPUT_FILE": "-", **changed}
    return [f"{argument.flag}={values[argument.name]}" for argument in generation_list.GENERATE.documented]


def test_one_copy_of_the_model_reads_the_terminal(monkeypatch):
    """On a machine of several GPUs too: several would each take some of the lines."""
    monkeypatch.setenv("GPUS_PER_NODE", "4")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert read_generation(flags()).processes.world_size == 1
    assert read_generation(flags(TP=2)).processes.world_size == 2


def test_a_job_of_several_nodes_has_no_terminal(monkeypatch, capsys):
    for name, value in {"WORLD_SIZE": 2, "RANK": 0, "MASTER_ADDR": "x", "MASTER_PORT": 23456, "NPROC_PER_NODE": 1}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(SystemExit):
        read_generation(flags(ENV="dlc"))
    assert "$15 INPUT_FILE: got 'none'; it opens a prompt on the terminal" in capsys.readouterr().err


def test_a_line_that_is_no_text_is_not_asked_and_the_next_one_is(tmp_path):
    arguments = words(INPUT_FILE="none", OUTPUT_FILE="-", OUTPUT_SEQ_LEN=4)
    said = subprocess.run(
        ["dash", str(GENERATE), *map(str, arguments)],
        env=environment() | {"PYTHONIOENCODING": "utf-8:strict"}, cwd=tmp_path, input=b"a \xff b\nx\n", capture_output=True,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    assert b"This cannot be asked: it holds half of a surrogate pair" in said.stdout


@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_is_a_line_and_no_traceback(processes, tmp_path):
    """It comes while answers are written, to every process, as a terminal sends it."""
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"query": f"x {n}"}) + "\n" for n in range(4000)))
    out = tmp_path / "out.jsonl"
    arguments = words(INPUT_FILE=tmp_path / "in.jsonl", OUTPUT_FILE=out, TP=processes)
    process = subprocess.Popen(
        ["dash", str(GENERATE), *map(str, arguments)],
        env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    for _ in range(1200):
        time.sleep(0.05)
        assert process.poll() is None, process.stderr.read()
        if out.is_file() and out.stat().st_size:
            break
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in said, said
    assert ("interrupted" if processes == 1 else "SIGINT") in said


WRONG = {
    "SEQ_LEN": (70, "it must hold INPUT_SEQ_LEN + OUTPUT_SEQ_LEN = 84 tokens: write 84 or more."),
    "CHECKPOINT_PATH": ("/nowhere", "There is no folder /nowhere"),
    "MODEL_SIZE": ("7B", "write auto, or another checkpoint."),
    "EXTRA_VOCAB_SIZE": (3, "the checkpoint has 0: write 0."),
    "INPUT_FILE": ("/nowhere.jsonl", "there is no such file"),
    "TOP_P": ("1.5", "from 0 to 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_one_sentence(name, queries, tmp_path):
    got, sentence = WRONG[name]
    result = run(GENERATE, *words(**{"INPUT_FILE": queries, "OUTPUT_FILE": tmp_path / "out", name: got}))
    assert result.returncode == 2
    number = list(ARGUMENTS).index(name) + 1
    (line,) = [line for line in result.stdout.splitlines() if line.startswith(f"  ${number} {name}: got '{got}'; ")]
    assert sentence in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "line",
    ['{"query": 3}', "no json", '["query"]', '{"prompt": "x"}', '{"query": ""}', "[" * 100_000],
    ids=lambda line: line[:12],
)
def test_a_line_that_is_no_query_is_named(line, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"query": "good"}\n' + line + "\n")
    with pytest.raises(UserError, match="in.jsonl, line 2 is "):
        read_queries(tmp_path / "in.jsonl")


def test_what_two_processes_find_is_said_once(tmp_path):
    (tmp_path / "in.jsonl").write_text("no json\n")
    result = run(GENERATE, *words(INPUT_FILE=tmp_path / "in.jsonl", OUTPUT_FILE=tmp_path / "out", TP=2), processes=2)
    assert result.returncode == 2 and result.stdout.count("in.jsonl, line 1 is ") == 1
    assert "Traceback" not in result.stdout and not (tmp_path / "out").exists()
