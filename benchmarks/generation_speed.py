"""What `benchmarks/generate.py` measures of this project, and checks, in a process that has the GPU for itself."""

from __future__ import annotations

import functools
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import torch
from megatron_patch.generate import tuning
from megatron_patch.generate.cache import BLOCK, BlockCache, block_bytes, blocks_of
from megatron_patch.generate.continuous_batching import Engine, Request, run_all
from megatron_patch.generate.decoder import WORTH_MEASURING, Decoder, DecoderWeights, LayerWeights
from megatron_patch.generate.prompt_graphs import Prompts, size_of_graph
from megatron_patch.generate.ranks import alone
from megatron_patch.generate.sampling import Sampling
from megatron_patch.kernels import _dispatch
from megatron_patch.kernels.attention_backends import choose_attention_backend
from megatron_patch.kernels.decode_attention import Reading
from megatron_patch.kernels.thin_products import Tiling
from megatron_patch.llama.model_config import LLAMA_SIZES, LlamaConfig

from benchmarks.children import pool
from benchmarks.timing import kept_up, milliseconds

PROMPT = ANSWER = 512
SEQUENCE = 2048  # tokens of a window of evaluation
MODEL = LLAMA_SIZES["llama2-7b"]
DEVICE = "cuda"
GO = "go"
_COMPILERS = 6  # processes that compile candidates at once


def random_decoder(config: LlamaConfig, dtype: torch.dtype, requests: int, longest: int) -> Decoder:
    """A decoder with normal weights, made on the device, and a cache for so many requests."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    h, f, d = config.hidden_size, config.ffn_hidden_size, config.kv_channels
    n, g = config.num_attention_heads, config.num_query_groups

    def draw(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=DEVICE).normal_(0.0, 0.02, generator=generator)

    def norm() -> torch.Tensor:
        return 1 + draw(h)

    layers = tuple(
        LayerWeights(norm(), draw((n + 2 * g) * d, h), draw(h, n * d), norm(), draw(2 * f, h), draw(h, f))
        for _ in range(config.num_layers)
    )
    weights = DecoderWeights(layers, draw(config.vocab_size, h), norm(), draw(config.vocab_size, h))
    cache = BlockCache.empty(config.num_layers, 1 + requests * blocks_of(longest), g, d, dtype, DEVICE)
    backend, _ = choose_attention_backend(DEVICE, dtype, d, False)
    return Decoder(config, weights, cache, alone(torch.device(DEVICE)), config.vocab_size, backend)


def requests(count: int, prompt: int, answer: int, vocabulary: int) -> list[Request]:
    """`count` requests with random prompts, each of which is answered to the end."""
    ids = torch.randint(3, vocabulary, (count, prompt), generator=torch.Generator().manual_seed(1)).tolist()
    return [Request(number, tuple(one), answer) for number, one in enumerate(ids)]


def part(name: str, run: Callable[[], object]) -> None:
    """Run it; what fails is printed, and the next part goes on."""
    started = time.perf_counter()
    try:
        run()
    except Exception:
        print(f"FAILED {name}:\n{traceback.format_exc()}", flush=True)
    print(f"# {name}: {time.perf_counter() - started:.1f} s", flush=True)


def wait_for_turn() -> None:
    """Say that everything is compiled, and wait until the GPU is free.

    Raises:
        SystemExit: nobody waits for this part any more.
    """
    print("READY", flush=True)
    if sys.stdin.readline().strip() != GO:
        raise SystemExit("nobody waits for this part any more")


def compile_candidates(rows: int, index: int, count: int) -> float:
    """Each `count`-th candidate of a step of `rows` rows, in a process of its own; seconds."""
    started, place = time.perf_counter(), [0]

    def fastest(candidates, runs):
        candidates = list(candidates)
        for candidate in candidates:
            place[0] += 1
            if place[0] % count == index:
                try:
                    runs(candidate)()
                except Exception as error:
                    print(f"# {candidate}: {type(error).__name__}: {str(error)[:200]}", flush=True)
        return candidates[0]

    tuning.fastest = fastest
    decoder = random_decoder(replace(MODEL, num_layers=1), torch.bfloat16, rows, PROMPT + ANSWER)
    with torch.no_grad():
        tuning.choose_step(decoder, rows, decoder.rotation_rows(PROMPT + ANSWER), blocks_of(PROMPT + ANSWER))
    torch.cuda.synchronize()
    return time.perf_counter() - started


def compile_all(batches: list[int]) -> None:
    """Triton keeps what these processes compile on disk."""
    each = max(1, _COMPILERS // len(batches))
    with pool(_COMPILERS) as processes:
        jobs = [processes.submit(compile_candidates, rows, index, each) for rows in batches for index in range(each)]
        print("# compiled in", " ".join(f"{job.result():.0f}" for job in jobs), "s", flush=True)


def check(_batches: list[int]) -> None:
    """The same greedy tokens in fp32 through graphs and Triton, and through plain PyTorch. Nothing is timed."""
    # Products of fp32 numbers are long to compile, so there is one candidate of each kind.
    tuning._ONE_ROW[4], tuning._FEW_ROWS[4] = (Tiling(16, 64),), (Tiling(16, 32),)
    tuning._READINGS[4] = (Reading(tile=16),)
    part("the same greedy tokens in fp32", check_tokens)
    wait_for_turn()


def check_tokens() -> None:
    """With one slot and with four, prompts of unequal length."""
    small = LlamaConfig(3, 256, 704, 8, 4, vocab_size=1000)
    asked = [replace(one, prompt=one.prompt[: 9 + 7 * one.number]) for one in requests(6, 60, 40, 1000)]
    found = {}
    for kind in ("torch", None):
        _dispatch.prefer(kind)
        found[kind] = [
            run_all(Engine(random_decoder(small, torch.float32, slots, 128), slots, 128), asked[:count])
            for slots, count in ((1, 1), (4, 6))
        ]
    _dispatch.prefer(None)
    same = found["torch"] == found[None]
    print(
        f"check  fp32, 1 and 4 slots, graphs and kernels against plain PyTorch: {'the SAME tokens' if same else 'OTHER tokens'}"
    )
    if not same:
        print(found)


def check_logits(rows: int, choice: tuning.StepChoice) -> None:
    """One step of two layers of 7B's widths behind 100 tokens, as chosen and through PyTorch; the truth is float32."""
    config, longest = replace(MODEL, num_layers=2), 128
    decoder = random_decoder(config, torch.bfloat16, rows, longest)
    decoder.cache.keys.normal_(), decoder.cache.values.normal_()
    width = blocks_of(longest)
    table = 1 + torch.arange(rows * width, dtype=torch.int32, device=DEVICE).view(rows, -1)
    tokens = torch.randint(3, config.vocab_size, (rows,), device=DEVICE)
    positions = torch.full((rows,), 100, dtype=torch.int32, device=DEVICE)
    rotation = decoder.rotation_rows(longest)
    found = {}
    for kind, products in (("triton", choice.products), ("torch", decoder.library_products())):
        _dispatch.prefer(kind)
        found[kind] = decoder.decode(tokens, positions, table, rotation, products, choice.reading)
    weights = decoder.weights
    exact = DecoderWeights(
        tuple(LayerWeights(*(getattr(one, name).float() for name in one.__dataclass_fields__)) for one in weights.layers),
        weights.embedding.float(), weights.final_norm.float(), weights.output.float(),
    )  # fmt: skip
    cache = BlockCache(decoder.cache.keys.float(), decoder.cache.values.float())
    wide = Decoder(config, exact, cache, decoder.ranks, decoder.rows, decoder.backend)
    truth = wide.decode(tokens, positions, table, rotation, wide.library_products())
    _dispatch.prefer(None)
    errors = {kind: float((logits - truth).norm() / truth.norm()) for kind, logits in found.items()}
    verdict = "good" if errors["triton"] < 1.5 * errors["torch"] else "WORSE than PyTorch"
    print(f"check  {rows} rows, distance of logits from float32's: {errors} {verdict}")


def ours(batches: list[int]) -> None:
    """Everything of this project, on one set of weights."""
    part("compiling", lambda: compile_all(batches))
    decoder = random_decoder(MODEL, torch.bfloat16, max(8, *batches), PROMPT + ANSWER)
    wait_for_turn()
    copy, burst, kept = limits()
    for rows in batches:
        part(f"ours, batch {rows}", functools.partial(decoding, decoder, rows, copy))
    part("ours, drawn", functools.partial(drawing, decoder, 8))
    for count in (1, 8):
        part(f"prompts, {count}", functools.partial(prompts, decoder, count, burst, kept))
    for count, measured in ((4, False), (8, False), (8, True)):
        part(f"evaluation, {count} windows", functools.partial(evaluation, decoder, count, measured, burst, kept))


def limits() -> tuple[float, float, float]:
    """(GB/s of a copy, TFLOP/s of 8192³ products, the same kept up)."""
    source = torch.randn(1 << 29, device=DEVICE)
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / milliseconds(lambda: torch.neg(source, out=target)) / 1e6
    read = source.nbytes / milliseconds(source.sum) / 1e6
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
    burst, kept = (2 * 8192**3 / spent(lambda: a @ b) / 1e9 for spent in (milliseconds, kept_up))
    print(
        f"limits {torch.cuda.get_device_name()}: copy {copy:.0f} GB/s, read {read:.0f} GB/s (a sum), products {burst:.0f} "
        f"TFLOP/s, kept up {kept:.0f}"
    )
    return copy, burst, kept


def limit_milliseconds(decoder: Decoder, rows: int, copy: float) -> float:
    """Of one step: every weight but the embedding, and the cache of sequences of 768 tokens, at the speed of a copy."""
    held = sum(getattr(layer, name).nbytes for layer in decoder.weights.layers for name in layer.__dataclass_fields__)
    config = decoder.config
    block = block_bytes(config.num_layers, config.num_query_groups, config.kv_channels, decoder.dtype)
    cache = rows * (PROMPT + ANSWER // 2) * block // BLOCK
    return (held + decoder.weights.output.nbytes + cache) / copy / 1e6


def decoding(decoder: Decoder, rows: int, copy: float) -> None:
    """The engine over `rows` requests, twice; the second time counts."""
    engine = Engine(decoder, rows, PROMPT + ANSWER)
    asked = requests(rows, PROMPT, ANSWER, decoder.rows)
    run_all(engine, [replace(one, new_tokens=8) for one in asked])
    choice = engine._step._choices[rows]
    print(f"ours   batch {rows}: {choice.reading} one_row={choice.products.one_row}")
    for name, tiling in choice.products.tilings.items():
        print(f"       {name}: {tiling}")
    for one in asked:
        engine.submit(one)
    torch.cuda.synchronize()
    started, count = time.perf_counter(), 0
    while count < rows:
        count += len(engine.step())
    first = time.perf_counter()
    while not engine.is_idle:
        count += len(engine.step())
    done = time.perf_counter()
    assert count == rows * ANSWER
    step = (done - first) / (ANSWER - 1) * 1e3
    limit = limit_milliseconds(decoder, rows, copy)
    print(f"ours   batch {rows}: {rows / step * 1e3:,.0f} tokens/s, {step:.3f} ms a step; the limit is {limit:.3f} ms, "
          f"{limit / step:.1%} of it; first tokens after {first - started:.3f} s, all {rows * ANSWER / (done - started):,.0f} "
          "tokens/s")  # fmt: skip
    profile(engine, rows, step)
    check_logits(rows, choice)


def drawing(decoder: Decoder, rows: int) -> None:
    """Tokens that are drawn, with everything that sampling knows."""
    engine = Engine(decoder, rows, PROMPT + ANSWER)
    asked = Sampling(temperature=0.8, top_k=50, top_p=0.9, repetition_penalty=1.1)
    some = [replace(one, new_tokens=64, sampling=asked) for one in requests(rows, PROMPT, ANSWER, decoder.rows)]
    run_all(engine, some)
    torch.cuda.synchronize()
    started = time.perf_counter()
    run_all(engine, some)
    print(f"ours   batch {rows}, drawn: {rows * 64 / (time.perf_counter() - started):,.0f} tokens/s with the prompts")


def profile(engine: Engine, rows: int, step: float) -> None:
    """Where a step's time goes, by kernel, with sequences of 768 tokens; and what the graph takes without the host."""
    recorded = next(one for kind, one in engine._step._recorded.items() if kind.rows == rows)
    numbers = recorded.numbers
    numbers[:, 0], numbers[:, 1] = torch.arange(rows, device=DEVICE), PROMPT + ANSWER // 2
    width = numbers.shape[1] - 2
    numbers[:, 2:] = 1 + torch.arange(rows * width, device=DEVICE).view(rows, -1)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    recorded.graph.replay()
    start.record()
    for _ in range(20):
        recorded.graph.replay()
    end.record()
    end.synchronize()
    print(f"       graph alone {start.elapsed_time(end) / 20:.3f} ms a step at 768 tokens (engine {step:.3f})")
    profiled("a step", recorded.graph.replay)


def profiled(name: str, run: Callable[[], object]) -> None:
    """The kernels of a run, by name."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(3):
            run()
        torch.cuda.synchronize()
    times: dict[str, list[float]] = defaultdict(list)
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            times[event.name].append(event.device_time)
    print(f"       kernels of {name}: {sum(map(sum, times.values())) / 3:.0f} µs together (they may overlap)")
    for kernel, spent in sorted(times.items(), key=lambda item: -sum(item[1]))[:14]:
        print(f"       {sum(spent) / 3:>9.1f} µs {len(spent) // 3:>4} × {kernel[:100]}")


def operations(tokens: int, length: int, logits: int) -> float:
    """Of a forward pass over `tokens` in sequences of `length`; causal attention counted as half."""
    h, f, d = MODEL.hidden_size, MODEL.ffn_hidden_size, MODEL.kv_channels
    n, g = MODEL.num_attention_heads, MODEL.num_query_groups
    layer = h * (n + 2 * g) * d + n * d * h + 3 * h * f + length * n * d
    return 2.0 * tokens * MODEL.num_layers * layer + 2.0 * logits * h * MODEL.vocab_size


def timed(run: Callable[[], object], least: float) -> float:
    """Milliseconds of one of the runs that follow each other for `least` seconds."""
    run(), torch.cuda.synchronize()
    started = time.perf_counter()
    run(), torch.cuda.synchronize()
    turns = max(2, round(least / (time.perf_counter() - started)))
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(turns):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / turns


def prompts(decoder: Decoder, count: int, burst: float, kept: float) -> None:
    """`count` prompts in one pass: as they come first, and with the algorithms that are measured later."""
    total = count * PROMPT
    tokens = torch.randint(3, decoder.rows, (total,))
    numbers = torch.stack([tokens, torch.arange(PROMPT).repeat(count), BLOCK + torch.arange(total), torch.full((total,), PROMPT)])
    ends, passes = [PROMPT * (i + 1) for i in range(count)], Prompts(decoder)
    for name, known in (("first guess", 0), ("measured algorithms", WORTH_MEASURING)):

        def run(known: int = known) -> None:  # as often as it may be timed, it is never the one that measures them
            passes._passes[size_of_graph(total)] = known
            passes.logits(numbers, ends)

        spent = timed(run, 0.3)
        passed(f"prompts {count} × {PROMPT}, {name}", total, operations(total, PROMPT, count), spent, burst, kept)
        if count > 1:
            return
    profiled("a prompt", lambda: passes.logits(numbers, ends))


def evaluation(decoder: Decoder, count: int, measured: bool, burst: float, kept: float) -> None:
    """Losses over `count` windows of 2,048 tokens, all of them asked for."""
    total = count * SEQUENCE
    tokens, labels = (torch.randint(3, decoder.rows, (total,), device=device) for device in (DEVICE, "cpu"))
    positions = torch.arange(SEQUENCE, device=DEVICE).repeat(count)
    ends = [SEQUENCE * (i + 1) for i in range(count)]
    spent = timed(lambda: decoder.losses(tokens, positions, labels, ends, measured=measured), 2.0)
    name = f"evaluation {count} × {SEQUENCE}, {'measured algorithms' if measured else 'first guess'}"
    passed(name, total, operations(total, SEQUENCE, total), spent, burst, kept)


def passed(name: str, tokens: int, work: float, spent: float, burst: float, kept: float) -> None:
    """A line about a pass of `work` operations that took `spent` milliseconds."""
    rate = work / spent / 1e9
    print(
        f"{name}: {spent:.2f} ms, {tokens / spent * 1e3:,.0f} tokens/s, {rate:.0f} TFLOP/s, {rate / burst:.1%} of the product "
        f"rate, {rate / kept:.1%} of what is kept up"
    )
