"""Where Chinese ends: what users of Chinese read in English all the same, and what reads as prose and is none."""

from __future__ import annotations

# Modules (a pattern of their path → why) whose texts are not translated.
ENGLISH = {
    r"(_list|_rows|/description|/tables|/report/(words|page_file|payload))\.py$": "lists and tables hold both languages abreast",
    r"/language/": "the catalogues",
    r"/core/known_warnings\.py$": "warnings of libraries, and why nobody is shown them",
    r"/kernels/(?!attention_backends)": "what a kernel refuses is a bug, or a developer's to read",
    r"/sinks/(tensorboard_files|to_mlflow)\.py$": "tags and names of what other programs show",
    r"/generate/(web\w*|openai_bodies)\.py$": "answers of an interface, which programs read",
}
NONE = {
    # Megatron's lines and TensorBoard's tags, which programs read
    " [{}] iteration {}/{}", " consumed samples: {}", " elapsed time per iteration (ms): {}", " learning rate: {}",
    " throughput per GPU (TFLOP/s/GPU): {}", " tokens per second per GPU: {}", " global batch size: {}", " lm loss: {}",
    " loss scale: {}", " grad norm: {}", " number of skipped iterations: {}", " number of nan iterations: {}",
    " validation loss at iteration {} | lm loss value: {} | lm loss PPL: {} | ",
    "[Rank {}] (after {} iterations) memory (MB) | {}",
    "max allocated", "max reserved", "lm loss", "lm loss validation", "lm loss validation ppl", "{} vs samples",
    " validation loss at iteration {}{} | lm loss value: {} | lm loss PPL: {} | ", " on {}", "lm loss validation{}",
    "lm loss validation ppl{}",
    "{}, {} {}{}", "{}, {} {}", "fastokens {}", "x{}y {}", "several .bin/.idx pairs into one",
    "a signal", "prctl(PR_SET_PDEATHSIG) was refused", "hang watch",
    # a thread's name, a stop's reason in metrics.jsonl, texts by which tokenizers are compared
    "progress of {}", "node {}: {}", "DataLoader worker (pid", "SIGTERM of the parent", "not finite",
    "asked through another rank",
    # the table of results and its JSON
    "fine-tuning samples", "indexed documents",
    # a prompt's words, marks in files, names of filters
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a response that "
    "appropriately completes the request.",
    "⁂ a mark that no text holds ⁂", "megatron_patch tokens 3", "megatron_patch preprocess 1",
    # why core is patched, why a tensor is left out: for who reads the code
    "torch's AdamW does not resume in the distributed optimizer, and its foreach form needs a copy of all gradients",
    "core would unpickle files of sample indices, which run code; a mapped array is all that they may be",
    "the sharded optimizer accepts this class only", "Adam above takes Apex's arguments",
    "the step is counted in the parameter group, as Apex does, so state moves the way it does there",
    "the product below answers for Apex's extension",
    "core accumulates weight gradients in fp32 inside the product through this name only",
    "frequencies before dynamic scaling; transformers from 4.43", "tables made from inv_freq; ColossalAI, transformers to 4.38",
    "the causal mask; transformers 4.38 and 4.39", "the causal mask, as in models made from GPT-NeoX's",
    # the commands of megatron-patch, which have both languages
    "memory, speed and traffic of a training, on paper", "one page of a run, or of several side by side",
    "supervised fine-tuning by iterations of a global batch", "continued pre-training",
    "supervised fine-tuning", "text from a checkpoint", "loss and perplexity of a checkpoint",
    "GPU memory and traffic of a training, on paper", "a conversation with a model on the terminal",
    "a model behind OpenAI's interface", "Hugging Face ↔ Megatron checkpoints", "raw text → .bin/.idx, or fine-tuning data",
    "what is in a data file or a checkpoint", "megatron-patch {}",
    # joints and parts of sentences, which are looked up as a whole; words of other programs
    "{}{}{}", "{} {}{}", "{} {} {}: {}", "  {}: {}", "{}: {}", "{} {}: {}", "{} token{}", "{} tokens, {} of them learnt.",
    "{} samples in {} sequences of {} ({} % filled): ", "{} is a {}", "{} lacks {}", "{} is {}", "rng: {}", "a key", " at {}",
    "{} is no {}",
    "{} has {}, {}", "rope_theta {}", " with linear scaling by {}", "No module named 'transformers'", "--verify-logits: {}:\n{}",
    "  {}: samples 1 to {} of {} are trained on, and {} are held out (number {}, in the order of the file; --split {})",
    "{} of the {} GiB of an {}, {}", "{}: it fits.", "{}: it does not fit.", "; or ", "{}, of {}.{}", "NAME: {}", "data parallel",
    "--cuda-graphs true", "--cuda-graphs false", "{} through the model in one pass: {}", " here, too little elsewhere",
    "one micro-batch goes", "{} micro-batches go", "other kernels", "inside layers", "gradients and weights sent", "{} {} {}",
    " from its data sheet; this kind was not measured", "Expected: {} tokens/s per GPU, {} s a step{}.", "early: {}.",
    "as asked; the same command goes on from here.", " stopping at iteration {} {}",
    "  {}: {} of an epoch's {} samples, {} passes over its {}",
    "  {}: the split {} leaves no validation data; evaluation is skipped",
}  # fmt: skip
# Made of several literals, or of words that templates() does not take for prose.
JOINED = {
    "{} samples in {} sequences of {} ({} % filled): {} tokens, {} of them learnt.", "no tokens", "{} token", "line {}",
    "item {}",
    "record {}", "and {} more", "{}: {} Evaluation is skipped.", "tokens", "above 0",
    "writing", "verifying", "reading", "saving", "flushing", "joining", "tokenizing", "samples",
    "answering", "answers", "windows",
    "samples 1 to {} of {} are trained on, and {} are held out (number {}, in the order of the file; --split {})",
    "{} with linear scaling by {}", "what is read from another GPU's memory is wrong", "{}: NCCL ({})",
    "data parallel: copy engines", "data parallel: NCCL ({})", "one micro-batch goes through the model in one pass: {}",
    "{} micro-batches go through the model in one pass: {}", "{} need {} GiB, and {} GiB are left here, too little elsewhere",
    "GPU memory, expected{}: {} GiB ({}, other {}), of {}.{}", "{} of the {} GiB of an {}, {}: it fits.",
    "{} of the {} GiB of an {}, {}: it does not fit.", "weights", "gradients", "optimizer", "activations", "together",
    "other kernels {}", "products {}", "attention {}", "inside layers {}", "gradients and weights sent {}",
    "Expected: {} tokens/s per GPU, {} s a step.", " stopping at iteration {} early: {}.",
    "Expected: {} tokens/s per GPU, {} s a step from its data sheet; this kind was not measured.",
    " stopping at iteration {} as asked; the same command goes on from here.",
    "{}: the split {} leaves no validation data; evaluation is skipped", "{} of an epoch's {} samples, {} passes over its {}",
    "weights {}", "gradients {}", "optimizer {}", "activations {}", "tensor {}", "pipeline {}",
}  # fmt: skip
