"""What devices say to each other takes this long: the alpha-beta model (Hockney 1994).

A message of m bytes takes alpha + m / beta: alpha seconds before its first byte, beta bytes per second after. The
collectives are those of Thakur, Rabenseifner and Gropp (IJHPCA 2005) and, for the ring, of Patarasuk and Yuan (JPDC
2009), each with the algorithm that is quickest for the size, as libraries choose it. All times in seconds, all sizes in
bytes, `devices` of them joined by equal links in both directions at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2


@dataclass(frozen=True, slots=True)
class Wire:
    """A link: seconds before the first byte, bytes per second after."""

    alpha: float
    beta: float

    def send(self, size: float) -> float:
        """One message."""
        return self.alpha + size / self.beta

    def all_reduce(self, size: float, devices: int) -> float:
        """Every device has `size` bytes and gets the sum.

        Ring: 2 (n - 1) messages of size/n. Recursive doubling: log2 n of the whole size.
        """
        if devices == 1 or size == 0:
            return 0.0
        ring = 2 * (devices - 1) * (self.alpha + size / devices / self.beta)
        doubling = ceil(log2(devices)) * (self.alpha + size / self.beta)
        return min(ring, doubling)

    def all_gather(self, size: float, devices: int) -> float:
        """Every device has size/n bytes and gets all `size`."""
        if devices == 1 or size == 0:
            return 0.0
        bytes_in = (devices - 1) / devices * size / self.beta
        return min(devices - 1, ceil(log2(devices))) * self.alpha + bytes_in

    def reduce_scatter(self, size: float, devices: int) -> float:
        """Every device has `size` bytes and gets its n-th of the sum: an all-gather backwards."""
        return self.all_gather(size, devices)

    def all_to_all(self, size: float, devices: int) -> float:
        """Every device has `size` bytes, an n-th of them for each; messages leave one after another."""
        if devices == 1 or size == 0:
            return 0.0
        return self.alpha + (devices - 1) / devices * size / self.beta
