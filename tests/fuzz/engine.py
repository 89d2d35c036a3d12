"""One process that fuzzes one target, started by ``run``.

With atheris the server's modules are instrumented, and libFuzzer keeps in the corpus what reaches
new code. Without it the inputs are made blindly by ``mutate``.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fuzz.inputs import HERE, dictionary, found, longest, seeds

# Nothing of the server may be imported before it is instrumented: the targets come later.

ATHERIS = importlib.util.find_spec("atheris") is not None
PARTS = 4
"""A guided run begins with one of so many parts of the seeds: all would be half of a short run."""
SOURCES = HERE.parent.parent / "src"
INSTRUMENTED = ("fluxor_fast.server", "fluxor_fast.http")


def others() -> list[str]:
    """Return the modules of the package that are not to be instrumented.

    They must be told one by one: atheris takes a package whole, whatever stands behind its dot.
    """
    paths = [path.relative_to(SOURCES) for path in sorted(SOURCES.rglob("*.py"))]
    names = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return [name for name in names if not name.startswith(INSTRUMENTED)]


def arguments() -> Any:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--engine", choices=("atheris", "blind"), required=True)
    parser.add_argument("--runs", type=int, required=True)
    parser.add_argument("--seconds", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--status", type=Path, required=True)
    return parser.parse_args()


def begin(args: Any) -> tuple[Callable[[bytes], None], Path]:
    """Return the watched target and the folder of its corpus."""
    from tests.fuzz.targets import TARGETS
    from tests.fuzz.watch import Status, Watch

    corpus = args.folder / "corpus" / args.target
    findings = args.folder / "findings"
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    watch = Watch(args.target, TARGETS[args.target](), Status(args.status), findings)
    return watch, corpus


def first_inputs(target: str) -> list[bytes]:
    """Return the seeds of ``target`` and its kept cases."""
    return seeds(target) + [path.read_bytes() for path in found(target)]


def with_atheris(args: Any) -> None:
    """Have libFuzzer call the target; it ends the process."""
    import atheris

    with atheris.instrument_imports(include=list(INSTRUMENTED), exclude=others()):
        watch, corpus = begin(args)
    part = args.seed % PARTS
    folder = args.folder / "seeds" / args.target / str(part)
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(first_inputs(args.target)[part::PARTS]):
        path = folder / f"{number:04}"
        if not path.exists() or path.read_bytes() != data:
            path.write_bytes(data)
    options = {
        "runs": args.runs,
        "max_total_time": args.seconds,
        "seed": args.seed,
        "max_len": longest(args.target),
        "dict": HERE / "http.dict",
        "artifact_prefix": f"{args.folder / 'findings' / args.target}-native-",
        "timeout": 120,  # of the clock; the watch counts the processor's time
        "rss_limit_mb": 1024,
        "reload": 1,  # what another process has found
        "print_final_stats": 1,
    }
    flags = [f"-{name}={value}" for name, value in options.items()]
    atheris.Setup([sys.argv[0], *flags, str(corpus), str(folder)], watch)
    atheris.Fuzz()


def blindly(args: Any) -> None:
    """Call the target with inputs of ``mutate``."""
    from tests.fuzz.mutate import Mutator

    watch, corpus = begin(args)
    pool = first_inputs(args.target)
    pool += [path.read_bytes() for path in sorted(corpus.iterdir())]
    until = time.monotonic() + args.seconds
    for data in pool[: args.runs]:
        watch(data)
    print(f"replayed {min(len(pool), args.runs)}", flush=True)
    mutator = Mutator(pool, dictionary(), random.Random(args.seed))
    for number in range(args.runs - len(pool)):
        watch(mutator.make())
        if number % 256 == 0 and time.monotonic() > until:
            return


if __name__ == "__main__":
    parsed = arguments()
    (with_atheris if parsed.engine == "atheris" else blindly)(parsed)
