"""Prints the counts of operations of docs/benchmarks/models.md. Needs Triton, but no GPU."""

from __future__ import annotations

from tests.unit.models.test_operations import count_step


def main() -> None:
    for name, frames in (("rvrt", 30), ("vrt", 16), ("iart", 16), ("basicvsrpp", 30)):
        print(f"{name}, {frames} frames: {count_step(name, frames).total():,} operations")


if __name__ == "__main__":
    main()
