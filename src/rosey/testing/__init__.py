"""For the tests of programs on the bus: faults on demand."""

from rosey.testing.fault_proxy import FaultProxy

__all__ = ["FaultProxy"]
