"""What it costs the driver to keep slots busy: `make bench-scheduler`, or this file with arguments.

The real executor runs rounds on simulated clusters, so that no GPU is needed. The table has the
processor time of the driver for a whole round, without Ray's and without the sums, and how much
longer the round takes than greedy list scheduling would.
"""

from __future__ import annotations

import argparse
import random
import time

from tests.unit.federation.simulated import Cluster, greedy_s, run_rounds, simulated


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--sizes",
        default="4:16,64:256,128:512,512:2048,512:10000",
        help="slots:clients a round, separated by commas",
    )
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    print("| slots | clients a round | CPU s a round | CPU ms a client | round / greedy |")
    print("|---|---|---|---|---|")
    for size in options.sizes.split(","):
        num_slots, cohort = map(int, size.split(":"))
        rng = random.Random(0)
        cluster = Cluster([rng.uniform(20, 200) for _ in range(2 * cohort)], num_slots)
        cohorts = [rng.sample(range(2 * cohort), cohort) for _ in range(options.rounds)]
        with simulated(cluster) as executor:
            began = time.process_time()
            seconds = run_rounds(executor, cohorts)
            cpu_s = (time.process_time() - began) / options.rounds
        least = [
            greedy_s([cluster.durations[i] + cluster.build_s for i in ids], num_slots)
            for ids in cohorts
        ]
        print(
            f"| {num_slots} | {cohort:,} | {cpu_s:.2f} | {1e3 * cpu_s / cohort:.2f} "
            f"| {sum(seconds) / sum(least):.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
