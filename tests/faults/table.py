"""All faults that the soak draws from; a module of faults is a line here."""

from __future__ import annotations

from tests.faults import damage, hangs, kills
from tests.faults.survival import Fault

FAULTS: tuple[Fault, ...] = (*kills.FAULTS, *hangs.FAULTS, *damage.FAULTS)
