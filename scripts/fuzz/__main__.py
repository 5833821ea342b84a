"""Opens damaged media by the thousand: each must end in frames or a typed error, soon and in little memory.

    python -m scripts.fuzz --seconds 60             a minute, with a seed of its own
    python -m scripts.fuzz --files 5000 --seed 7    these, again and again
    python -m scripts.fuzz --again 7-1234           one of them; --keep DIR saves what is found

A medium fails that ends its process (crash), computes for over 10 s (hang), raises what is no typed error, or
`internal_error` (untyped), or takes over 512 MiB more than its pixels (memory). Exit code 1 if one does.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from scripts.fuzz.mutations import mutated
from scripts.fuzz.rig import Bounds, Finding, run
from scripts.fuzz.seeds import seeds

READER = "scripts.fuzz.reader:read_medium"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m scripts.fuzz", description=(__doc__ or "").split("\n")[0])
    much = made.add_mutually_exclusive_group()
    much.add_argument("--files", type=int, default=5000, help="how many media (default: %(default)s)")
    much.add_argument("--seconds", type=float, help="for how long, instead")
    much.add_argument("--again", metavar="SEED-NUMBER", help="only the medium of this name")
    made.add_argument("--seed", type=int, help="of the generator (default: another one each time)")
    made.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: cores)")
    made.add_argument("--keep", type=Path, metavar="DIR", help="a folder for the media that fail")
    made.add_argument("--limit-s", type=float, default=10.0, help="seconds to compute (default: %(default)g)")
    made.add_argument("--limit-mb", type=int, default=512, help="MiB beyond pixels (default: %(default)s)")
    made.add_argument("--reader", default=READER, help=argparse.SUPPRESS)
    return made


def main(arguments: list[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    seed = random.SystemRandom().randrange(1 << 24) if given.seed is None else given.seed
    numbers: Iterator[int] = iter(range(given.files))
    if given.again:
        seed, number = (int(part) for part in given.again.split("-"))
        numbers = iter([number])
    elif given.seconds:
        end_s = time.monotonic() + given.seconds
        numbers = itertools.takewhile(lambda _: time.monotonic() < end_s, itertools.count())
    kinds: Counter[str] = Counter()

    def found(one: Finding) -> None:
        kinds[one.kind] += 1
        print(
            f"{one.kind} {seed}-{one.number} ({one.made_of}, {len(one.data)} bytes): {one.what}", flush=True
        )
        if given.keep:
            given.keep.mkdir(parents=True, exist_ok=True)
            (given.keep / f"{one.kind}-{seed}-{one.number}").write_bytes(one.data)

    start_s = time.monotonic()
    media = seeds()
    tried = run(
        functools.partial(mutated, seed, media=media),
        numbers,
        reader=given.reader,
        workers=1 if given.again else given.workers,
        bounds=Bounds(seconds=given.limit_s, more_bytes=given.limit_mb << 20),
        found=found,
    )
    told = ", ".join(f"{kind} {count}" for kind, count in kinds.items()) or "nothing"
    print(f"seed {seed}: {tried} media of {len(media)} kinds in {time.monotonic() - start_s:.0f} s: {told}")
    return 1 if kinds else 0


if __name__ == "__main__":
    sys.exit(main())
