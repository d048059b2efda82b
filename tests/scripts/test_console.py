"""What a user sees on the console: no warning of a library below, as Python shows them by default."""

from __future__ import annotations

from tests.launching import AS_USERS_HAVE_IT, GOLDEN, PRETRAIN, PRETRAIN_ARGUMENTS, convert, library_warnings, run, succeed


def test_no_warning_of_a_library_reaches_the_console(tmp_path):
    """Of fine-tuning, tests/scripts/test_documented_commands.py looks at the same."""
    model = convert(GOLDEN / "hf_gqa", tmp_path / "model")
    arguments = PRETRAIN_ARGUMENTS | dict(
        TP=2, SP="true", AC="sel", DO="true", SAVE_INTERVAL=1, TRAIN_TOKENS=2 * 4 * 32, WARMUP_TOKENS=0,
        DATASET_PATH=GOLDEN / "data/corpus_text_document", PRETRAIN_CHECKPOINT_PATH=model, OUTPUT_BASEPATH=tmp_path / "out",
    )  # fmt: skip

    def console(*flags: object) -> str:
        return succeed(run(PRETRAIN, *arguments.values(), *flags, processes=2, job=AS_USERS_HAVE_IT))

    begun, resumed = console("--exit-interval", 1), console()
    assert "saved checkpoint of iteration 1 " in begun and "going on from iteration 1" in resumed
    assert library_warnings(begun + resumed) == []
