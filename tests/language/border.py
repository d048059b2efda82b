"""Where Chinese ends: what the sources hold as prose, by rooms, and what users of Chinese read in English all the same."""

from __future__ import annotations

# Read as prose and are none, or are no sentence of ours to a user: a prompt's words, names, marks in files.
NONE = {
    # data
    "counted steps", "bounded value", "{}{}{}", "{} {}{}", "  {}: {}", "{}: {}", "{} {}: {}", "megatron_patch tokens 2",
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a response that "
    "appropriately completes the request.",
    "  {}: samples 1 to {} of {} are trained on, and {} are held out (number {}, in the order of the file; --split {})",
    # conversion, preparation, checkpoint, formats: a status, a mark, joints
    "No module named 'transformers'", "--verify-logits: {}:\n{}", "megatron_patch preprocess 1", "{} is a {}", "{} lacks {}", "{} is {}",
    "rng: {}", "a key", " at {}", "{} is no {}", "made from {}",
    # weights: a table's words; a phrase's end
    "frequencies before dynamic scaling; transformers from 4.43", "tables made from inv_freq; ColossalAI, transformers to 4.38",
    "the causal mask; transformers 4.38 and 4.39", "the causal mask, as in models made from GPT-NeoX's", "rope_theta {}",
    " with linear scaling by {}",
    "⁂ a mark that no text holds ⁂", "{} token{}",
    "{} samples in {} sequences of {} ({} % filled): ", "{} tokens, {} of them learnt.",
}  # fmt: skip
# Made of several literals, or in words that templates() does not take for prose.
JOINED = {
    # data
    "{} samples in {} sequences of {} ({} % filled): {} tokens, {} of them learnt.", "no tokens", "{} token",
    "line {}", "item {}",
    "samples 1 to {} of {} are trained on, and {} are held out (number {}, in the order of the file; --split {})",
    # conversion
    "writing", "verifying",
    # weights
    "{} with linear scaling by {}",
    # data
    "and {} more", "{}: {} Evaluation is skipped.",
}  # fmt: skip
