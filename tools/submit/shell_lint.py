"""What is for bash in a script that dash runs: words that dash takes for something else, and those it stumbled over.

Nothing is parsed: a line is looked at by itself. So the commands of a here-document are not seen, nor the outermost of
three nested ones in a string; an argument ``echo`` is taken for the command.
"""

import re
from collections.abc import Iterator

# *+ gives nothing back: a bracket or quote that is not closed costs no time.
_PLAIN = r"\\.|'[^']*'|\"(?:\\.|[^\"\\])*+\"|[^()'\"\\]"
_SUBSTITUTION = rf"\$\((?:{_PLAIN}|\((?:{_PLAIN})*+\))*+\)|`[^`]*`"
_DOUBLE_QUOTED = rf"\"(?:\\.|{_SUBSTITUTION}|[^\"\\])*+\""
# Taken away before looking: here-documents; escapes, strings and comments. $'...' leaves $''.
_HERE_DOCUMENT = re.compile(r"(?<!<)<<-?\s*(['\"]?)(\w+)\1([^\n]*)\n.*?^\s*\2$", re.DOTALL | re.MULTILINE)
_NO_CODE = re.compile(rf"\\.|'[^']*'|{_DOUBLE_QUOTED}|(?<![^\s;])#[^\n]*", re.DOTALL)
# Also taken away: $((...)), which dash knows.
_ARITHMETIC = re.compile(r"\$\(\((?:[^()]|\([^()]*\))*\)\)")
# What dash accepts without a word and understands otherwise.
_SILENT = {
    "&> (dash runs the command in the background)": re.compile(r"&>"),
    "$'...' (dash keeps the dollar sign)": re.compile(r"\$''"),
    # Not where bash does not either: x={a,b}, ${x:-{a,b}}. Nor {\"a\":1,\"b\":2}: somebody means the braces.
    "{a..b} or {a,b} (dash does not expand it)": re.compile(
        r"(?:(?<![$\w=])(?<!:[-=+?])|(?<!\S)--?[\w-]+=)\{[^\s{},\\]+(?:\.\.|,)[^\s{}\\]*\}"
    ),
    "echo -e (dash prints the -e)": re.compile(
        r"(?<![\w./$-])echo(?:\s+-[neE]+)*\s+-[neE]*[eE][neE]*(?![^\s;&|<>()`])"
    ),
    "name+=value (dash has no such assignment)": re.compile(
        r"(?:^|[;&|({`]|\b(?:then|do|else|export|readonly)\s)\s*[A-Za-z_]\w*\+="
    ),
    "((...)) (dash runs commands in subshells)": re.compile(r"\(\((?:[^()]|\([^()]*\))*\)\)"),
}
_WORDS = r"\[\[|source|declare|typeset|let|shopt|pushd|popd|mapfile|readarray|function"
_COMPLAINT = re.compile(
    rf"^\S*predict\.sh: (?:line )?\d+: (?:(?:{_WORDS}): not found|.*(?:Bad substitution|unexpected operator|"
    r"Illegal option|Bad fd number)).*$",
    re.MULTILINE,
)
# What is shown and not run; up to the end of the command.
_SHOWN = re.compile(rf"(?<![\w./$-])(?:echo|printf)\b(?:\\.|'[^']*'|{_DOUBLE_QUOTED}|[^\\'\";&|\n])*+", re.DOTALL)


def without_text(script: str) -> str:
    """The script without here-documents, strings and comments; its lines keep their numbers.

    ``echo "a && b" # c`` leaves ``echo '' ``. What a string runs is code: ``"a $(ls "b") c"`` leaves ``''$(ls '')``.
    """
    return _NO_CODE.sub(_emptied, _without_here_documents(script))


def find_bashisms(script: str) -> list[str]:
    """What dash takes for something else, as ``line 3: echo -e (dash prints the -e)``."""
    return list(_find(_ARITHMETIC.sub(lambda found: "0" + _line_ends(found[0]), without_text(script))))


def find_complaints(log: str) -> list[str]:
    """Lines in which dash says that it does not know something in predict.sh, so that ran."""
    return [found[0].strip() for found in _COMPLAINT.finditer(log)]


def sets_variable(script: str, name: str) -> bool:
    """Whether a script gives a variable a value, or takes its value away; also in strings, which it may run.

    Not ``echo "NAME=$NAME"``, which shows it, and no other string with ``NAME=$NAME`` either.
    """
    if re.search(rf"(?<![\w$]){name}=|\bunset[ \t]+(?:[^\s;&|]+[ \t]+)*{name}\b", without_text(script)):
        return True
    strings = _SHOWN.sub("", _NO_CODE.sub(_without_comment, _without_here_documents(script)))
    return re.search(rf"(?<![\w$]){name}=(?!\$(?:{name}\b|\{{{name}\}}))", strings) is not None


def _without_here_documents(script: str) -> str:
    return _HERE_DOCUMENT.sub(lambda found: found[3] + _line_ends(found[0]), script)


def _find(code: str) -> Iterator[str]:
    for number, line in enumerate(code.splitlines(), start=1):
        for name, pattern in _SILENT.items():
            if pattern.search(line):
                yield f"line {number}: {name}"


def _emptied(found: re.Match[str]) -> str:
    text = found[0]
    if text.startswith("\\"):
        return "\n" if text == "\\\n" else "\\_"
    if text.startswith("#"):
        return ""
    if text.startswith("'"):
        return f"''{_line_ends(text)}"
    inner, code, end = text[1:-1], "''", 0
    for run in re.finditer(rf"\\.|{_SUBSTITUTION}", inner, re.DOTALL):
        code += _line_ends(inner[end : run.start()])
        code += _line_ends(run[0]) if run[0].startswith("\\") else _NO_CODE.sub(_emptied, run[0])
        end = run.end()
    return code + _line_ends(inner[end:])


def _without_comment(found: re.Match[str]) -> str:
    return "" if found[0].startswith("#") else found[0]


def _line_ends(text: str) -> str:
    return "\n" * text.count("\n")
