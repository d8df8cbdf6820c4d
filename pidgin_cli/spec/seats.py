"""What each agent of a conversation is called and told, once it is known which models sit together."""

from collections.abc import Sequence

from .awareness import Seat, filled, system_prompt
from .schema import AgentSpec, AwarenessSpec

__all__ = ["display_names", "seated", "texts_for"]


def seated(agents: Sequence[AgentSpec]) -> tuple[AgentSpec, ...]:
    """The agents with names and system prompts written out. Their models are ids, their awareness is resolved."""
    names = display_names(agents)
    seats = [Seat(agent.id, agent.model, name) for agent, name in zip(agents, names, strict=True)]
    return tuple(
        agent.model_copy(
            update={
                "name": seat.name,
                "system_prompt": _prompt(agent, seat, seats),
                "think": True if agent.think_budget is not None and agent.think is None else agent.think,
            }
        )
        for agent, seat in zip(agents, seats, strict=True)
    )


def _prompt(agent: AgentSpec, seat: Seat, seats: Sequence[Seat]) -> str | None:
    if agent.system_prompt is not None or not isinstance(agent.awareness, AwarenessSpec):
        return agent.system_prompt
    text = agent.awareness.system_prompt
    return system_prompt(agent.awareness.base, seat, seats) if text is None else filled(text, seat, seats)


def display_names(agents: Sequence[AgentSpec]) -> list[str]:
    """Names as given, else from the model; self-play gets the agent's id behind it."""
    models = [agent.model for agent in agents]
    plain = [(model.partition(":")[2].partition("?")[0].rpartition("/")[2] or model)[:40] for model in models]
    return [
        agent.name or (name if plain.count(name) == 1 else f"{name}-{agent.id}")
        for agent, name in zip(agents, plain, strict=True)
    ]


def texts_for(awareness: AwarenessSpec, agent_id: str) -> dict[int, str]:
    """What one agent is told, by turn."""
    return {
        turn: text if isinstance(text, str) else text[agent_id]
        for turn, text in awareness.prompts.items()
        if isinstance(text, str) or agent_id in text
    }
