"""The notebook of an experiment: it asks the database, and shows how to ask it."""

from typing import Any

import nbformat

from pidgin_cli.eventlog.manifest import Manifest

from .text import inline

__all__ = ["notebook"]

_nbformat: Any = nbformat
"""It comes without types."""
_new = _nbformat.v4

# What stands in the cells is fixed text; of an experiment only its id goes into code, which is [a-z0-9]{8}.

_CELLS: tuple[tuple[str, str], ...] = (
    (
        "code",
        """import duckdb
import matplotlib.pyplot as plt
import numpy as np

EXPERIMENT = "{experiment_id}"
con = duckdb.connect("../experiments.duckdb", read_only=True)""",
    ),
    (
        "code",
        """def ask(sql, *values):
    \"\"\"An answer as columns: a dict of numpy arrays, NULL as NaN or None.\"\"\"
    answer = con.execute(sql, [EXPERIMENT, *values])
    names = [column[0] for column in answer.description]
    rows = answer.fetchall()
    return {{name: np.array([row[i] for row in rows]) for i, name in enumerate(names)}}


def show(sql, *values):
    con.sql(sql, params=[EXPERIMENT, *values]).show(max_width=200)""",
    ),
    ("markdown", "## What happened"),
    (
        "code",
        '''show("""
    SELECT status, conversations, arms, completed, failed, invalid, notable, messages, tokens, cost_usd
    FROM dashboard WHERE experiment_id = ?
""")''',
    ),
    (
        "code",
        '''show("""
    SELECT conversation_id, arm, status, end_reason, turns, messages, invalid, notable, cost_usd
    FROM conversations WHERE experiment_id = ? ORDER BY length(conversation_id), conversation_id
""")''',
    ),
    (
        "markdown",
        "## Which conversations count\n\nThe conversation is the unit of everything below, not the message. Means, "
        "intervals and tests go over those that are\ncomplete and not marked invalid, as in `pidgin words`, `pidgin "
        "compare`, the report and the views: the table `counted`.\nTo count others, change its last line.",
    ),
    (
        "code",
        '''con.execute("""
    CREATE OR REPLACE TEMP TABLE counted AS
    SELECT experiment_id, conversation_id, coalesce(arm, '') AS arm FROM conversations
    WHERE experiment_id = ? AND status = 'completed' AND NOT coalesce(invalid, false)
""", [EXPERIMENT])
show("""
    SELECT coalesce(c.arm, '') AS arm, count(k.conversation_id) AS n, count(*) - n AS left_out,
           count(*) FILTER (c.invalid) AS invalid,
           count(*) FILTER (NOT coalesce(c.invalid, false) AND c.status <> 'completed') AS valid_not_complete
    FROM conversations c LEFT JOIN counted k USING (conversation_id) WHERE c.experiment_id = ? GROUP BY ALL ORDER BY ALL
""")
arms = ask("SELECT DISTINCT coalesce(arm, '') AS arm FROM conversations WHERE experiment_id = ? ORDER BY arm")["arm"]
colours = {{arm: f"C{{place}}" for place, arm in enumerate(arms)}}  # one for each arm, in every figure
every = ask("SELECT conversation_id FROM conversations WHERE experiment_id = ?")["conversation_id"]
n = len(ask("SELECT conversation_id FROM counted WHERE experiment_id = ?")["conversation_id"])
print(f"n = {{n}} of {{len(every)}} conversations; {{len(every) - n}} left out")''',
    ),
    (
        "markdown",
        "## How they ended\n\nShares with 95 % intervals (Wilson), of all conversations that are not invalid, complete "
        "or not.",
    ),
    (
        "code",
        '''from pidgin_cli.metrics.statistics import wilson

ends = ask("""
    SELECT coalesce(end_reason, status) AS reason, count(*) AS n FROM conversations
    WHERE experiment_id = ? AND NOT coalesce(invalid, false) GROUP BY ALL ORDER BY n
""")
total = int(sum(ends["n"]))''',
    ),
    (
        "code",
        """fig, ax = plt.subplots(figsize=(7, 1 + 0.5 * len(ends["n"])))
for place, (reason, n) in enumerate(zip(ends["reason"], ends["n"])):
    low, high = wilson(int(n), total)
    ax.barh(place, n / total, color="tab:blue", alpha=0.6)
    ax.plot([low, high], [place, place], color="black")
ax.set_yticks(range(len(ends["n"])), [f"{{r}} ({{n}})" for r, n in zip(ends["reason"], ends["n"])])
ax.set(xlim=(0, 1), xlabel=f"share of {{total}} conversations")
plt.show()""",
    ),
    ("markdown", "## Message lengths\n\nThin: conversations. Thick: their mean at each turn."),
    (
        "code",
        '''lengths = ask("""
    SELECT conversation_id, turn_number, avg(length(content)) AS characters
    FROM messages JOIN counted c USING (conversation_id) WHERE c.experiment_id = ?
    GROUP BY ALL ORDER BY conversation_id, turn_number
""")''',
    ),
    (
        "code",
        """fig, ax = plt.subplots(figsize=(8, 4))
turns, characters = lengths["turn_number"], lengths["characters"]
for name in np.unique(lengths["conversation_id"]):
    own = lengths["conversation_id"] == name
    ax.plot(turns[own], characters[own], color="tab:blue", alpha=0.25, linewidth=0.8)
means = [characters[turns == turn].mean() for turn in np.unique(turns)]
ax.plot(np.unique(turns), means, color="tab:blue", linewidth=2.5, marker="o", markersize=3)
ax.set(xlabel="turn", ylabel="characters per message", ylim=(0, None))
ax.set_title(f"n = {{len(np.unique(lengths['conversation_id']))}} conversations", loc="left", fontsize="medium")
ax.locator_params(axis="x", integer=True, min_n_ticks=1)
plt.show()""",
    ),
    (
        "markdown",
        "## Words\n\nOver n transcripts: mean uses, share of transcripts, median and most in one. The mean alone "
        "misleads:\none transcript can hold most uses of a word.",
    ),
    (
        "code",
        '''from pidgin_cli.metrics.words import stop_words

words = """
    WITH talks AS (
        SELECT conversation_id FROM counted WHERE experiment_id = ?
    ), used AS (
        SELECT conversation_id, word, sum(uses)::BIGINT AS uses FROM word_uses SEMI JOIN talks USING (conversation_id)
        WHERE kind = ? AND NOT list_contains(?, word) GROUP BY ALL
    ), often AS (SELECT word FROM used GROUP BY word ORDER BY sum(uses) DESC, word LIMIT 20)
    SELECT word, count(*) AS n, round(avg(coalesce(uses, 0)), 2) AS mean,
           round(100 * count(uses) / count(*), 1) AS percent_of_transcripts,
           median(coalesce(uses, 0)) AS median, max(uses) AS max
    FROM talks CROSS JOIN often LEFT JOIN used USING (conversation_id, word)
    GROUP BY word ORDER BY mean DESC, word
"""
show(words, "word", sorted(stop_words()))''',
    ),
    ("code", 'show(words, "emoji", [])'),
    (
        "markdown",
        "## Measures by arm\n\nOver valid conversations: number, mean, standard deviation, median and the 95 %\n"
        "interval of the mean. `SELECT DISTINCT measure FROM arm_statistics` lists what there is.",
    ),
    (
        "code",
        '''MEASURES = ["messages", "message_chars", "final_convergence", "mattr_50"]
MEASURES += ["novelty_4gram", "copied_span_share", "emoji_count"]
show("""
    SELECT measure, arm, n, round(mean, 3) AS mean, round(sd, 3) AS sd, round(median, 3) AS median,
           round(ci_low, 3) AS ci_low, round(ci_high, 3) AS ci_high, left_out FROM arm_statistics
    WHERE experiment_id = ? AND n > 0 AND list_contains(?, measure) ORDER BY measure, arm
""", MEASURES)''',
    ),
    ("markdown", "## Convergence\n\nThe live score, where the record holds it; not corrected for chance."),
    (
        "code",
        '''trend = ask("""
    SELECT coalesce(arm, '') AS arm, turn_number, n, mean, ci_low, ci_high FROM convergence_trends
    WHERE experiment_id = ? AND mean IS NOT NULL ORDER BY arm, turn_number
""")
fig, ax = plt.subplots(figsize=(8, 4))
for arm in np.unique(trend["arm"]):
    own = trend["arm"] == arm
    label = arm.replace("$", r"\\$") or "all"
    label += f" (n = {{max(trend['n'][own])}})"
    colour = colours[arm]
    ax.plot(trend["turn_number"][own], trend["mean"][own].astype(float), "o-", color=colour, markersize=3, label=label)
    low, high = (trend[name][own].astype(float) for name in ("ci_low", "ci_high"))
    ax.fill_between(trend["turn_number"][own].astype(int), low, high, color=colour, alpha=0.2, linewidth=0)
if len(trend["arm"]):
    ax.legend()
ax.set(xlabel="turn", ylabel="convergence", ylim=(0, 1))
ax.locator_params(axis="x", integer=True, min_n_ticks=1)
plt.show()''',
    ),
    (
        "markdown",
        "## How long until an attractor state\n\nKaplan-Meier: the turn in which the first state other than `normal` "
        "began, dated back to its onset.\nConversations without one are censored at their last turn, not left out.",
    ),
    (
        "code",
        '''passages = ask("""
    SELECT c.arm, min(began.turn_number) FILTER (state <> 'normal') AS entered, max(m.turn_number) AS last
    FROM messages m JOIN counted c USING (conversation_id)
    JOIN message_metrics s USING (conversation_id, message_index)
    ASOF JOIN messages began ON m.conversation_id = began.conversation_id
        AND coalesce(state_onset, m.message_index) <= began.message_index
    WHERE c.experiment_id = ? AND state IS NOT NULL
    GROUP BY c.arm, m.conversation_id ORDER BY c.arm
""")
had = np.array([turn is not None for turn in passages["entered"]], dtype=bool)
times = np.where(had, passages["entered"], passages["last"])''',
    ),
    (
        "code",
        """from pidgin_cli.metrics.statistics import kaplan_meier, logrank

groups = [(times[passages["arm"] == arm], had[passages["arm"] == arm]) for arm in np.unique(passages["arm"])]
fig, ax = plt.subplots(figsize=(8, 4))
for arm, group in zip(np.unique(passages["arm"]), groups):
    curve = kaplan_meier(*group)
    label = f"{{arm or 'all'}} (n = {{len(group[0])}})".replace("$", r"\\$")
    ax.step([0, *curve.times], [1, *curve.survival], where="post", color=colours[arm], label=label)
if groups:
    ax.legend(loc="lower left")
ax.set(xlabel="turn", ylabel="still in the normal state", ylim=(0, 1.02))
ax.locator_params(axis="x", integer=True, min_n_ticks=1)
plt.show()
logrank(*groups)""",
    ),
    (
        "markdown",
        "## Two arms against each other\n\nOne value per conversation. `difference` is the second less the first, "
        "with a 95 % bootstrap interval; `g` is\nHedges' g. Many measures at once need a correction: `pidgin compare` "
        "has it.",
    ),
    (
        "code",
        '''from pidgin_cli.metrics.statistics import compare_groups

sizes = ask("""
    SELECT c.arm, avg(length(content)) AS characters FROM messages JOIN counted c USING (conversation_id)
    WHERE c.experiment_id = ? GROUP BY c.arm, conversation_id ORDER BY ALL
""")
pair = np.unique(sizes["arm"])[:2]
if len(pair) == 2:
    groups = [sizes["characters"][sizes["arm"] == arm] for arm in pair]
    found = compare_groups(*groups, seed=1)
    print(f"{{pair[1]}} (n = {{len(groups[1])}}) less {{pair[0]}} (n = {{len(groups[0])}}):")
    print(f"{{found.difference:.1f}} characters per message")
    print(found.interval, found.g, found.permutation, sep="\\n")
else:
    print("no two arms have conversations that count")''',
    ),
    (
        "markdown",
        '## Going on\n\n- what there is: `con.sql("SHOW TABLES").show()`, `con.sql("DESCRIBE messages").show()`\n'
        '- what was said: `show("SELECT agent_id, content FROM messages WHERE experiment_id = ? LIMIT 4")`\n'
        "- arms against each other, with intervals and corrections: `pidgin compare`\n"
        "- this file is made anew by `pidgin notebook`: save a copy under another name to keep what you change",
    ),
)


def notebook(manifest: Manifest) -> str:
    """The notebook of an experiment, without outputs; the same text every time."""
    title = (
        f"# {inline(manifest.name or manifest.experiment_id)}\n\nExperiment {manifest.experiment_id}, made by Pidgin."
    )
    cells: list[Any] = []
    for place, (kind, source) in enumerate((("markdown", title), *_CELLS)):
        make = _new.new_code_cell if kind == "code" else _new.new_markdown_cell
        text = source.format(experiment_id=manifest.experiment_id) if kind == "code" else source
        cells.append(make(source=text, id=f"cell-{place}"))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    made = _new.new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})
    _nbformat.validate(made)
    return str(_nbformat.writes(made)) + "\n"
