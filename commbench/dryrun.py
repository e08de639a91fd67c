"""``commbench run --dry-run``: the plan as a table."""

from __future__ import annotations

from tabulate import tabulate

from commbench.plan import Case, Plan
from commbench.registry import load
from commbench.units import format_size


def table(plan: Plan, ranks: int) -> str:
    """A row for each case in the order of the first launch; channels need not be usable here."""
    blocks = plan.blocks(load, ranks)
    rows = [{"block": at, **_row(case)} for at, block in enumerate(blocks) for case in block]
    title = (
        f"# {len(rows)} cases in {len(blocks)} blocks, order {plan.order}, "
        f"seed {plan.order_seed}, {ranks} ranks\n"
    )
    return title + tabulate(rows, "keys", tablefmt="plain")


def _row(case: Case) -> dict[str, object]:
    timed = case.duration_s > 0
    return {
        "benchmark": case.benchmark,
        "channel": case.channel,
        "mode": case.mode,
        "scheme": case.payload.scheme,
        "size": format_size(case.nbytes),
        "buffers": len(case.payload.sizes),
        "window": case.window,
        "iterations": f"{case.duration_s:g} s" if timed else case.iterations,
        "warm-up": f"{case.warmup_s:g} s" if timed else case.warmup,
        "options": " ".join(f"{key}={value}" for key, value in _options(case).items()),
    }


def _options(case: Case) -> dict[str, object]:
    """Those of a parameter server or a broker, then those of the channel."""
    ps = {} if case.spec is None else case.spec.to_json()
    given = {key: value for key, value in ps.items() if value}
    return given | dict(sorted(case.options.items()))
