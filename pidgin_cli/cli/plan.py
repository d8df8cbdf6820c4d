"""`run --dry-run`: what would be run, in which order, and what it may cost."""

from collections.abc import Mapping, Sequence

import click
import msgspec
from rich.table import Table

from pidgin_cli.experiments.estimate import Estimate, estimate
from pidgin_cli.monitor.console import make_console
from pidgin_cli.monitor.text import one_line, visible
from pidgin_cli.reports.text import count
from pidgin_cli.spec.conversation import ConversationSpec
from pidgin_cli.spec.experiment import ExperimentSpec

__all__ = ["cost_range", "show_plan"]

SHOWN_ARMS = 40
SHOWN_OF_ORDER = 8


def cost_range(cost: tuple[float, float] | None) -> str:
    """`$1.20 to $14.00`, `$0`, or `?`."""
    if cost is None:
        return "?"
    if cost == (0.0, 0.0):
        return "$0"
    low, high = (f"${value:,.2f}" if value >= 0.01 else f"${value:.4f}" for value in cost)
    return f"{low} to {high}"


def show_plan(
    spec: ExperimentSpec, conversations: Mapping[str, ConversationSpec], chosen: Sequence[str] | None, *, as_json: bool
) -> int:
    """Print the plan. Gives the exit status."""
    order = list(conversations) if chosen is None else list(chosen)
    found = estimate(conversations[name] for name in order)
    if as_json:
        plan = [
            {
                "number": int(name.rpartition("-")[2]),
                "arm": each.arm,
                "variables": each.variables,
                "seating": each.seating,
                "first": each.first,
                "repetition": each.repetition,
                "seed": each.seed,
                "models": {agent.id: agent.model for agent in each.agents},
                "max_turns": each.max_turns,
                "branch_of": None if each.origin is None else msgspec.to_builtins(each.origin),
            }
            for name, each in ((name, conversations[name]) for name in order)
        ]
        whole = [{"estimate": msgspec.to_builtins(found), "order": plan}]
        click.echo(msgspec.json.format(msgspec.json.encode(whole), indent=2))
        return 0
    _print_plan(spec, conversations, order, found)
    return 0


def _print_plan(
    spec: ExperimentSpec, conversations: Mapping[str, ConversationSpec], order: Sequence[str], found: Estimate
) -> None:
    console = make_console()
    if spec.name:
        console.print(visible(spec.name), style="bold", markup=False)
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("arm", overflow="fold")
    for column in ("conversations", "calls", "tokens", "cost"):
        table.add_column(column, justify="right", no_wrap=True)
    for arm in found.arms[:SHOWN_ARMS]:
        table.add_row(
            one_line(arm.arm, 200) or "(one arm)",
            f"{arm.conversations:,}",
            f"{arm.calls:,}",
            _tokens(arm.tokens),
            cost_range(arm.cost_usd),
        )
    if len(found.arms) > SHOWN_ARMS:
        table.add_row(f"… {len(found.arms) - SHOWN_ARMS} more arms", "", "", "", "")
    if len(found.arms) > 1:
        table.add_section()
        table.add_row(
            "all", f"{found.conversations:,}", f"{found.calls:,}", _tokens(found.tokens), cost_range(found.cost_usd)
        )
    console.print(table)
    console.print()
    console.print(f"order ({count(len(order), 'conversation')}, seed {spec.seed}):", style="dim")
    for name in order[:SHOWN_OF_ORDER]:
        each = conversations[name]
        facts = [each.arm, each.seating and f"seats {each.seating}", f"repetition {each.repetition}"]
        facts.append(f"{each.first} opens")
        if each.origin is not None:
            when = (
                "before the first intervention" if each.origin.until_intervention else f"after turn {each.origin.turn}"
            )
            facts.append(f"branches from {each.origin.conversation_id} {when}")
        number = name.rpartition("-")[2]
        line = one_line(" · ".join(fact for fact in facts if fact), max(20, console.width - 7))
        console.print(f"{number:>5}  {line}", markup=False, highlight=False, no_wrap=True)
    if len(order) > SHOWN_OF_ORDER:
        console.print(f"    …  {len(order) - SHOWN_OF_ORDER:,} more", style="dim")
    console.print()
    waits = [one for name in order for one in conversations[name].interventions if one.when is not None]
    for told in dict.fromkeys(f"{one.kind} of {', '.join(one.agents)}: when {one.when}" for one in waits):
        console.print(one_line(told, max(20, console.width)), markup=False, highlight=False, no_wrap=True)
    if waits:
        console.print()
    console.print(
        "Lower end: replies of 80 tokens, little thinking, a warm prompt cache. Upper end: replies of 700 tokens or "
        "max_tokens, all of the thinking budget, no cache. Prompts grow with all that was said before.",
        style="dim",
    )


def _tokens(tokens: tuple[int, int]) -> str:
    return f"{_short(tokens[0])} to {_short(tokens[1])}"


def _short(number: int) -> str:
    for size, unit in ((1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)
