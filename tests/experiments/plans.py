"""Plans of the tiny model, as the tests of planning and execution make them."""

from pathlib import Path

from experiments.plans.make import make_plan
from experiments.plans.manifest import Plan
from experiments.plans.status import State, states_of


def planned(small: list[str], *words: str) -> Plan:
    """A plan of the tiny model; `small` are the overrides of a run that takes a moment."""
    results = next(word.partition("=")[2] for word in small if word.startswith("results="))
    return make_plan([word for word in small if not word.startswith("results=")] + list(words), Path(results))[0]


def states(plan: Plan) -> list[State]:
    """The states of its rows."""
    return [state.state for state in states_of(plan)]


def media(plan: Plan) -> dict[str, bytes]:
    """Every file that its runs generated."""
    files = sorted((plan.results / "runs").glob("*/media/*"))
    return {str(path.relative_to(plan.results)): path.read_bytes() for path in files}


def lines(plan: Plan) -> list[str]:
    """All records of items, of all runs."""
    paths = sorted((plan.results / "runs").glob("*/items*.jsonl"))
    return [line for path in paths for line in path.read_text().splitlines()]
