"""What is for bash in a script that dash runs: words that dash takes for something else, and those it stumbled over."""

import re
from collections.abc import Iterator

# Taken away before looking: here-documents; escapes, strings and comments. $'...' leaves $''.
_HERE_DOCUMENT = re.compile(r"(?<!<)<<-?\s*(['\"]?)(\w+)\1([^\n]*)\n.*?^\s*\2$", re.DOTALL | re.MULTILINE)
_NO_CODE = re.compile(r"\\.|'[^']*'|\"(?:\\.|[^\"\\])*\"|(?<![^\s;])#[^\n]*", re.DOTALL)
# What dash accepts without a word and understands otherwise.
_SILENT = {
    "&> (dash runs the command in the background)": re.compile(r"&>"),
    "$'...' (dash keeps the dollar sign)": re.compile(r"\$''"),
    "{a..b} or {a,b} (dash does not expand it)": re.compile(r"(?<![$\w])\{[^\s{},]+(?:\.\.|,)[^\s{}]*\}"),
    "echo -e (dash prints the -e)": re.compile(r"\becho\s+-\w*[eE]\w*(?!\S)"),
}
_WORDS = r"\[\[|source|declare|typeset|let|shopt|pushd|popd|mapfile|readarray|function"
_COMPLAINT = re.compile(
    rf"^\S*predict\.sh: (?:line )?\d+: (?:(?:{_WORDS}): not found|.*(?:Bad substitution|unexpected operator|"
    r"Illegal option|Bad fd number)).*$",
    re.MULTILINE,
)


def without_text(script: str) -> str:
    """The script without here-documents, strings and comments; its lines keep their numbers.

    ``echo "a && b" # c`` leaves ``echo '' ``.
    """
    script = _HERE_DOCUMENT.sub(lambda found: found[3] + "\n" * (found[0].count("\n")), script)
    return _NO_CODE.sub(_emptied, script)


def find_bashisms(script: str) -> list[str]:
    """What dash takes for something else, as ``line 3: echo -e (dash prints the -e)``."""
    return list(_find(without_text(script)))


def find_complaints(log: str) -> list[str]:
    """Lines in which dash says that it does not know something in predict.sh, so that ran."""
    return [found[0].strip() for found in _COMPLAINT.finditer(log)]


def sets_variable(script: str, name: str) -> bool:
    """Whether a script gives a variable a value, or takes its value away."""
    return re.search(rf"(?<![\w$]){name}=|\bunset\s+(?:\S+\s+)*{name}\b", without_text(script)) is not None


def _find(code: str) -> Iterator[str]:
    for number, line in enumerate(code.splitlines(), start=1):
        for name, pattern in _SILENT.items():
            if pattern.search(line):
                yield f"line {number}: {name}"


def _emptied(found: re.Match[str]) -> str:
    text = found[0]
    if text.startswith("\\"):
        return "\n" if text == "\\\n" else "_"
    lines = "\n" * text.count("\n")
    return lines if text.startswith("#") else f"''{lines}"
