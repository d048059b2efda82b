"""What kinds of GPUs multiply, copy and send. Imports no torch.

The H200's figures were read on such machines (docs/performance.md). Those of other kinds are data sheets' figures
times the H200's share of its own, and nothing was tried there: `estimated` says so.
"""

from __future__ import annotations

from dataclasses import dataclass

# What an H200 keeps up of its data sheet: 669 of 989 TFLOP/s at its power limit, 4.27 of 4.8 TB/s.
_PRODUCTS_KEPT, _COPY_KEPT = 669 / 989, 4.27 / 4.8
# Assumed of GPUs that do not stand at their power limit: they keep up more of their data sheet.
_PRODUCTS_UNHINDERED = 0.85
# One NVLink 4 host: an all-reduce of 1 GiB over four GPUs, and what collectives of 16 to 32 MiB inside layers reach
# over two and over four; bytes a second that each GPU sends.
_LARGE, _SMALL, _SMALL_OF_TWO = 351e9, 235e9, 150e9
_NVLINK_4 = 900e9  # its data sheet, both directions
_PCIE = 20e9  # of GPUs without NVLink, through the host


@dataclass(frozen=True)
class Rates:
    """Rates of one GPU, a second.

    Attributes:
        products: FLOPs of large 16-bit matrix products, kept up for a second.
        memory: bytes that a copy reads and writes.
        large, small, small_of_two: bytes that a GPU sends in collectives of one host: gradients and weights; inside
            layers over more than two GPUs; and over two.
        copies: whether GPUs of one host read each other's memory by NVLink.
        estimated: whether the rates are data sheets' and were not seen.
    """

    products: float
    memory: float
    large: float
    small: float
    small_of_two: float
    copies: bool
    estimated: bool


def _by_data_sheet(products: float, memory: float, nvlink: float, kept: float = _PRODUCTS_UNHINDERED) -> Rates:
    """Rates from a data sheet's dense 16-bit FLOP/s, and bytes a second of memory and of NVLink (0: none)."""
    share = nvlink / _NVLINK_4
    sent = (_LARGE * share, _SMALL * share, _SMALL_OF_TWO * share) if nvlink else (_PCIE, _PCIE, _PCIE)
    return Rates(products * kept, memory * _COPY_KEPT, *sent, copies=bool(nvlink), estimated=True)


# By the names of fitting.GPUS.
RATES = {
    "h200": Rates(669e12, 4.27e12, _LARGE, _SMALL, _SMALL_OF_TWO, copies=True, estimated=False),
    "h100": _by_data_sheet(989e12, 3.35e12, 900e9, _PRODUCTS_KEPT),
    "a100-80g": _by_data_sheet(312e12, 2.04e12, 600e9),
    "h20": _by_data_sheet(148e12, 4.0e12, 900e9),
    "l20": _by_data_sheet(119.5e12, 0.864e12, 0),
    "rtx4090": _by_data_sheet(165e12, 1.008e12, 0),
}
