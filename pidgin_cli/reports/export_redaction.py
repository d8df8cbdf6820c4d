"""What texts lose before they leave the house, where that is asked for: keys, e-mail addresses, paths, machines."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from functools import partial

__all__ = ["RULES", "Redactor"]

# In JSON or a program within a text, a line may end in a backslash and an n: what follows begins there all the same.
_ESCAPED = r"(?<=\\[bfnrt])"
_KEY = re.compile(
    r"""
    -----BEGIN\ [A-Z ]*PRIVATE\ KEY-----.*?(?:-----END\ [A-Z ]*PRIVATE\ KEY-----|\Z)
    | (?:(?<![A-Za-z0-9])|(?<=\\[bfnrt]))(?:
        sk-[A-Za-z0-9_-]{16,}                     # OpenAI, Anthropic, OpenRouter, DeepSeek
        | (?:xai-|gsk_|hf_|r8_|pplx-|nvapi-|tgp_v1_|csk-|fw_)[A-Za-z0-9_-]{16,}
        | AIza[A-Za-z0-9_-]{30,}                  # Google
        | (?:gh[opusr]_|github_pat_|glpat-|xox[abposr]-|npm_|pypi-)[A-Za-z0-9_-]{16,}
        | (?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Z0-9])   # AWS
        | eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}
    )
    | (?<=[Bb]earer\ )[A-Za-z0-9._~+/-]{16,}=*
    | (?<=://)[^\s/:@"'<>]{1,256}:[^\s/:@"'<>]{1,256}(?=@)
    """,
    re.VERBOSE | re.DOTALL,
)
# It can begin at one place of a run of letters only: otherwise a long text would be searched from each of its letters.
_EMAIL = re.compile(
    rf"(?:(?<![\w.+%-])(?!(?<=\\)[bfnrt])|{_ESCAPED})[\w.+%-]+@(?:[\w-]+\.)+[^\W\d_]{{2,}}",
)
_PATH_END = r"[^\s\"'`<>|;:,*?()\[\]{}]*"
_PATH = re.compile(
    rf"(?:(?<![\w.~/-])|(?<=file://)|{_ESCAPED})/(?:home|Users|root)(?=/|\b){_PATH_END}"
    rf"|(?:(?<!\w)|{_ESCAPED})[A-Za-z]:[\\/]{{1,4}}(?:Users|Documents\ and\ Settings)\b{_PATH_END}"
)
_HOST = re.compile(
    r"(?<![\d.])(?:10(?:\.\d{1,3}){3}|192\.168(?:\.\d{1,3}){2}|172\.(?:1[6-9]|2\d|3[01])(?:\.\d{1,3}){2})(?![\d.])"
)

RULES = {
    "key": (
        "API keys and tokens by their known beginnings, bearer tokens, private keys, passwords in addresses, and the "
        "keys in the environment of whoever exports"
    ),
    "email": "e-mail addresses",
    "path": "paths below a home folder (/home, /Users, /root, C:\\Users), and below the folders of whoever exports",
    "host": "names of the machines that ran the experiments, and addresses of private networks",
}
"""What each rule takes out."""

_SHORTEST = {"key": 8, "path": 2, "host": 4, "host_alone": 1}
"""Literals below this length would take ordinary words out."""


class Redactor:
    """Puts marks such as `[email-2]` in the place of what a rule finds; the same text has the same mark everywhere.

    So what was different stays different: arms that are called after files, for example, do not become one.
    """

    def __init__(self, keys: Iterable[str] = (), folders: Iterable[str] = (), hosts: Iterable[str] = ()) -> None:
        """Literals to take out beside what the rules find by its form; `folders` with all that is below them."""
        self.counts: Counter[str] = Counter(dict.fromkeys(RULES, 0))
        """How often each rule has found something."""
        self._marks: dict[tuple[str, str], str] = {}
        self._distinct: Counter[str] = Counter()
        named = [host for host in hosts if host != "localhost"]
        self._rules = [
            ("key", _literals("key", keys)),
            ("key", _KEY),
            ("email", _EMAIL),
            ("path", _literals("path", (folder.rstrip("/") for folder in folders), after=rf"(?![\w.-]){_PATH_END}")),
            ("path", _PATH),
            ("host", _literals("host", named, rf"(?:(?<![\w.-])|{_ESCAPED})", r"(?![\w-])")),
            ("host", _literals("host_alone", named, r"\A", r"\Z")),
            ("host", _HOST),
        ]

    def __call__(self, text: str) -> str:
        for rule, pattern in self._rules:
            if pattern is not None:
                text = pattern.sub(partial(self._mark, rule), text)
        return text

    def _mark(self, rule: str, match: re.Match[str]) -> str:
        found = match[0]
        self.counts[rule] += 1
        if (rule, found) not in self._marks:
            self._distinct[rule] += 1
            self._marks[rule, found] = f"[{rule}-{self._distinct[rule]}]"
        return self._marks[rule, found]


def _literals(rule: str, texts: Iterable[str], before: str = "", after: str = "") -> re.Pattern[str] | None:
    wanted = {text for text in texts if len(text) >= _SHORTEST[rule]}
    wanted |= {json.dumps(text)[1:-1] for text in wanted} | {text.replace("/", "\\/") for text in wanted}
    long = sorted(wanted, key=len, reverse=True)
    return re.compile(f"{before}(?:{'|'.join(map(re.escape, long))}){after}") if long else None
