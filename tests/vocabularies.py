"""Vocabularies of LLaMA's kind, made of the golden one: every ASCII character, and runs of spaces of score -1e9."""

import shutil

from sentencepiece import sentencepiece_model_pb2 as proto

RUNS = (2, 4, 8, 5, 16, 6, 12, 13, 10, 14, 3, 9, 7, 11)  # lengths, in the order of a real vocabulary
_FIRST = 259  # the first number behind control tokens and bytes


def llama_folder(golden, folder):
    """`folder` with a tokenizer.model of that kind."""
    return changed_model(golden, folder, lambda model: None)


def changed_model(golden, folder, change):
    """The same after `change(model)`, a protobuf message that it may write to."""
    model = proto.ModelProto.FromString((golden / "hf_mha" / "tokenizer.model").read_bytes())
    there = {piece.piece for piece in model.pieces}
    pieces = list(model.pieces)
    runs = [proto.ModelProto.SentencePiece(piece="▁" * length, score=-1e9) for length in RUNS]
    letters = [proto.ModelProto.SentencePiece(piece=chr(c), score=-1e6 - c) for c in range(33, 127) if chr(c) not in there]
    kept = [piece for piece in pieces[_FIRST:] if set(piece.piece) != {"▁"} or len(piece.piece) == 1]
    del model.pieces[:]
    model.pieces.extend([*pieces[:_FIRST], *runs, *kept, *letters])
    change(model)
    folder.mkdir(exist_ok=True)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (golden / "hf_mha" / name).is_file():
            shutil.copy(golden / "hf_mha" / name, folder)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    return folder
