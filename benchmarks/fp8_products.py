"""FP8 products of LLaMA-2 7B's layers by cuBLASLt: which ways of scaling exist, how fast they are, and how far off.

    python benchmarks/fp8_products.py --json fp8.json

For 4096 tokens (a pair of micro-batches) and then 2048 it prints the forward product, the data gradient and the weight
gradient of each layer. The weight gradient is added to float32. The columns:
- short: TFLOP/s of the fastest algorithm in a race of a few products;
- kept up: TFLOP/s of the fastest of the finalists when it runs on at the power limit;
- error: ‖out − truth‖ / ‖truth‖; the truth is the float64 product of the bf16 numbers. "normal" are normal numbers;
  "heavy" are such times a factor for each channel of the activations and for each token of the gradients, log-normal
  with σ 1 and 2;
- sums: the same error against the exact product of the FP8 numbers.

Each group of cases runs in a process of its own, so that a product that breaks CUDA's context breaks no other. What
cuBLASLt does not have is printed as such. Then come the kernels that cast.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch

from children import end_with_me
from megatron_patch.kernels import products
from megatron_patch.kernels._cublaslt import Product, Scaling, Shape, version
from megatron_patch.kernels._race import race
from megatron_patch.kernels.fp8 import E4M3, E5M2, LARGEST

DEVICE = "cuda"
H, FFN = 4096, 11008
LAYERS = {"fc1": (2 * FFN, H), "qkv": (3 * H, H), "fc2": (H, FFN), "proj": (H, H)}
TOKENS = (4096, 2048)
GROUPS = {"tensor": 62, "casts": 22, "row": 26, "block": 30}  # and the seconds that each may take
BROKEN = 3  # status of a process whose CUDA context broke in the case whose row it has printed
SETTLE, LONG, FINALISTS = 60.0, 50.0, 2  # milliseconds, milliseconds, algorithms
T, R, V, B = Scaling.TENSOR, Scaling.ROW, Scaling.VECTOR128, Scaling.BLOCK128


@dataclass(frozen=True)
class Mode:
    """A way to compute out [M, N] = a [M, K] · b [N, K]ᵀ.

    Attributes:
        a, b: how each is scaled; None: both stay bf16.
        a_dtype: that of gradients; everything else is E4M3.
        fast: sums in the tensor cores' own precision.
    """

    name: str
    a: Scaling | None
    b: Scaling | None
    a_dtype: torch.dtype = E4M3
    fast: bool = False


def modes(group: str, part: str) -> list[Mode]:
    """The ways that a group tries for a part of training."""
    both = [("E4M3", E4M3)] if part == "forward" else [("E4M3", E4M3), ("E5M2", E5M2)]
    if group == "tensor":
        ways = [Mode("bf16", None, None)]
        for name, dtype in both:
            ways += [Mode(f"tensor {name}", T, T, dtype), Mode(f"tensor {name} fast", T, T, dtype, fast=True)]
        return ways
    if group == "row":
        return [Mode("row E4M3", R, R), Mode("row E4M3 fast", R, R, fast=True)]
    vectors = Mode("vector × vector", V, V)
    # Weights in blocks are the same for both of their products. A weight gradient has no weight.
    return [vectors] if part == "weight gradient" else [Mode("vector × block", V, B), vectors]


def operands(layer: str, part: str, tokens: int, heavy: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(a [M, K], b [N, K]) in bf16, as a layer's product has them."""
    out, inner = LAYERS[layer]
    torch.manual_seed(0)
    x, dy, weight = (torch.randn(*size, device=DEVICE) for size in ((tokens, inner), (tokens, out), (out, inner)))
    if heavy:
        x *= torch.exp(torch.randn(inner, device=DEVICE))
        dy *= torch.exp(2 * torch.randn(tokens, 1, device=DEVICE))
    x, dy, weight = x.bfloat16(), (1e-3 * dy).bfloat16(), (0.02 * weight).bfloat16()
    pairs = {"forward": (x, weight), "data gradient": (dy, weight.t()), "weight gradient": (dy.t(), x.t())}
    a, b = pairs[part]
    return a.contiguous(), b.contiguous()


def scaled(x: torch.Tensor, dtype: torch.dtype, scaling: Scaling) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x [R, K] as FP8, its factors as cuBLASLt wants them, and the numbers that the two stand for in float64."""
    rows, k = x.shape
    parts = {T: (rows, k), R: (1, k), V: (1, 128), B: (128, 128)}[scaling]
    blocks = x.float().view(rows // parts[0], parts[0], k // parts[1], parts[1])
    most = blocks.abs().amax((1, 3), keepdim=True).clamp(min=1e-30)
    values = (blocks * (LARGEST[dtype] / most)).to(dtype)
    exact = (values.double() * (most.double() / LARGEST[dtype])).view(rows, k)
    factors = (most / LARGEST[dtype])[:, 0, :, 0]  # [R / part, K / part]
    if scaling == V:
        factors = factors.t().contiguous()
    if scaling == B:
        factors = torch.nn.functional.pad(factors, (0, -factors.shape[1] % 4)).contiguous()
    return values.view(rows, k), factors.contiguous().view(-1), exact


@dataclass
class Case:
    """One product, ready to be launched and compared."""

    a: torch.Tensor
    b: torch.Tensor
    out: torch.Tensor
    scales: tuple[torch.Tensor, ...]
    shape: Shape
    exact: Callable[[], torch.Tensor]  # of the numbers that are multiplied, float64


def prepare(mode: Mode, a: torch.Tensor, b: torch.Tensor, out_dtype: torch.dtype) -> Case:
    """Cast a and b as `mode` says. cuBLAS, which is column-major, has them in the other order."""
    out = torch.zeros(a.shape[0], b.shape[0], dtype=out_dtype, device=DEVICE)
    shape = products.shape_of(a, b.t(), out)
    if mode.a is None or mode.b is None:
        return Case(a, b, out, (), shape, lambda: a.double() @ b.double().t())
    qa, sa, ea = scaled(a, mode.a_dtype, mode.a)
    qb, sb, eb = scaled(b, E4M3, mode.b)
    shape = replace(shape, dtype=E4M3, b_dtype=mode.a_dtype, scaling_a=mode.b, scaling_b=mode.a, fast_sums=mode.fast)
    return Case(qa, qb, out, (sb, sa), shape, lambda: ea @ eb.t())


def addresses(case: Case) -> tuple[int, ...]:
    """As `products._time` takes them."""
    return case.b.data_ptr(), case.a.data_ptr(), case.out.data_ptr(), *(scale.data_ptr() for scale in case.scales)


def errors(case: Case, product: Product, algorithm, truth: torch.Tensor) -> tuple[float, float]:
    """(error against `truth`, error against the exact product of the numbers that were multiplied)."""
    adds = case.out.dtype == torch.float32
    before = torch.randn_like(case.out) * truth.std().float() if adds else torch.full_like(case.out, math.nan)
    case.out.copy_(before)
    places = addresses(case)
    product.launch(algorithm, *places[:3], 1.0 if adds else 0.0, torch.cuda.current_stream().cuda_stream, *places[3:])
    got = case.out.double() - before.double() if adds else case.out.double()
    exact = case.exact()
    return tuple(((got - right).norm() / right.norm()).item() for right in (truth, exact))


def speeds(case: Case, product: Product) -> tuple[float, float, object]:
    """Milliseconds (short, kept up), and the algorithm that is the fastest when kept up."""
    beta, stream = 1.0 if case.out.dtype == torch.float32 else 0.0, torch.cuda.current_stream().cuda_stream

    def run(turns: int, algorithm) -> float:
        return products._time(product, addresses(case), beta, stream, turns, algorithm)

    short = race(run, product.algorithms)
    finalists = sorted(range(len(short)), key=short.__getitem__)[:FINALISTS]
    long = {}
    for place in finalists:
        run(math.ceil(SETTLE / short[place]), product.algorithms[place])
        turns = math.ceil(LONG / short[place])
        long[place] = run(turns, product.algorithms[place]) / turns
    best = min(long, key=long.__getitem__)
    return min(short), long[best], product.algorithms[best]


def by_torch(case: Case, mode: Mode) -> str:
    """How far torch's own scaled product is from ours, which `case.out` holds; for results that were not added."""
    (rows, k), columns = case.a.shape, case.b.shape[0]
    sb, sa = case.scales
    if (mode.a, mode.b) == (R, R):
        sa, sb = sa.view(rows, 1), sb.view(1, columns)
    elif (mode.a, mode.b) == (V, V):
        sa, sb = sa.view(k // 128, rows).t(), sb.view(k // 128, columns)
    elif (mode.a, mode.b) != (T, T):
        return "not asked"
    out = torch._scaled_mm(case.a, case.b.t(), sa, sb, out_dtype=case.out.dtype, use_fast_accum=mode.fast)
    return f"{((out.double() - case.out.double()).norm() / out.double().norm()).item():.1e}"


def with_algorithms(case: Case) -> tuple[Product, str]:
    """The product, asked for as training does, and where that finds nothing with the factors and with a workspace."""
    here, said = torch.device(DEVICE, torch.cuda.current_device()), []
    pointers = tuple(scale.data_ptr() for scale in case.scales)
    ways = [("", ())]
    if case.scales:
        workspace = torch.empty(64 << 20, dtype=torch.uint8, device=DEVICE)
        ways += [("factors given", (pointers,)), ("factors and workspace given", (pointers, workspace))]
    for how, given in ways:  # noqa: B007  it is used behind the loop
        product = Product(case.shape, here, *given)
        if product.algorithms:
            break
        said.append(product.answer)
    return product, how if product.algorithms else "; ".join(said)


def measure(layer: str, part: str, tokens: int, mode: Mode) -> dict:
    """The row of one case.

    Raises:
        RuntimeError: cuBLASLt, or CUDA, refused it.
    """
    row = {"layer": layer, "part": part, "tokens": tokens, "mode": mode.name}
    for heavy in (False, True):
        a, b = operands(layer, part, tokens, heavy)
        case = prepare(mode, a, b, torch.float32 if part == "weight gradient" else torch.bfloat16)
        product, how = with_algorithms(case)
        if not product.algorithms:
            return {**row, "unsupported": f"cuBLASLt has no algorithm: {how}"}
        row["how"] = how
        if not heavy:
            short, long, algorithm = speeds(case, product)
            operations = 2 * a.shape[0] * a.shape[1] * b.shape[0] / 1e9
            row |= {"short": operations / short, "kept_up": operations / long, "ms": long, "algorithms": len(product.algorithms)}
        of_bf16, of_sums = errors(case, product, algorithm, a.double() @ b.double().t())
        row["heavy" if heavy else "normal"] = of_bf16
        row["sums_heavy" if heavy else "sums"] = of_sums
        if not heavy and case.scales and case.out.dtype != torch.float32:
            try:
                row["torch"] = by_torch(case, mode)
            except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
                row["torch"] = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
    return row


def cases(group: str) -> Iterator[tuple[str, str, int, Mode]]:
    """A group's cases, the most telling first."""
    for tokens in TOKENS:
        for layer in LAYERS:
            for part in ("forward", "data gradient", "weight gradient"):
                for mode in modes(group, part):
                    yield layer, part, tokens, mode


def shown(row: dict) -> str:
    """One line of the table."""
    head = f"{row['tokens']:5} {row['layer']:5}{row['part']:16}{row['mode']:18}"
    if "unsupported" in row:
        return f"{head} {row['unsupported']}"
    numbers = f"{row['short']:7.0f}{row['kept_up']:8.0f}{row['ms']:8.3f}{row['normal']:10.2e}{row['heavy']:10.2e}"
    return f"{head}{numbers}{row['sums']:10.1e}{row['algorithms']:4} {row.get('torch', '')} {row.get('how', '')}"


def run_group(group: str, first: int, seconds: float) -> None:
    """Measure a group's cases from number `first` on, in this process, and print each row as JSON."""
    until = time.monotonic() + seconds
    if group == "casts":
        from fp8_casts import measure_casts

        return measure_casts(until, lambda row: print(json.dumps(row), flush=True))
    for number, (layer, part, tokens, mode) in enumerate(cases(group)):
        if number < first:
            continue
        named = {"number": number, "layer": layer, "part": part, "tokens": tokens, "mode": mode.name}
        if time.monotonic() > until:
            print(json.dumps({**named, "unsupported": "no time was left"}), flush=True)
            continue
        try:
            row = measure(layer, part, tokens, mode)
        except RuntimeError as error:
            row = {"unsupported": f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"}
        print(json.dumps({**named, **row}), flush=True)
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            sys.exit(BROKEN)


def supervise(group: str, seconds: float) -> list[dict]:
    """Run a group in a process of its own and print its rows; if it dies, another one does what is left."""
    until, rows, first, last = time.monotonic() + seconds, [], 0, ""
    while (left := until - time.monotonic()) > 0:
        command = [sys.executable, __file__, "--group", group, "--first", str(first), "--seconds", str(left)]
        both = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        process = subprocess.Popen(command, preexec_fn=end_with_me(), **both)
        overdue = threading.Timer(left + 10, process.kill)
        overdue.start()
        for line in process.stdout:
            if not line.startswith("{"):
                last = line.strip() or last
                continue
            row = json.loads(line)
            rows.append(row)
            first = row.get("number", first) + 1
            print(row["text"] if "text" in row else shown(row), flush=True)
        status = process.wait()
        overdue.cancel()
        if status == 0:
            return rows
        print(f"# the process of {group} ended with {status} at case {first}: {last}", flush=True)
        if group == "casts":
            return rows
        first += status != BROKEN
    return rows


def describe() -> None:
    """Print the GPU, the versions, and how fast bf16 products are."""
    a, b, out = (torch.randn(8192, 8192, dtype=torch.bfloat16, device=DEVICE) for _ in range(3))
    product = Product(products.shape_of(a, b.t(), out), torch.device(DEVICE, torch.cuda.current_device()))
    short, long, _ = speeds(Case(a, b, out, (), products.shape_of(a, b.t(), out), lambda: out), product)
    work = 2 * 8192**3 / 1e9
    text = (
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, cuBLASLt {version()}: bf16 8192³ {work / short:.0f} short, "
    )
    print(json.dumps({"text": f"{text}{work / long:.0f} TFLOP/s kept up"}), flush=True)


def main() -> None:
    """Parse; measure one group here, or all in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--group", choices=GROUPS, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.group:
        if options.group == "tensor" and options.first == 0:
            describe()
        return run_group(options.group, options.first, options.seconds)
    print(
        f"{'tokens layer part':27}{'mode':18}{'short':>7}{'kept up':>8}{'ms':>8}{'normal':>10}{'heavy':>10}{'sums':>10} of  torch"
    )
    rows = []
    for group in options.groups:
        rows += supervise(group, GROUPS[group])
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
