"""Writes the few kinds of message that calibration files hold, in a fixed order and with fixed rounding."""

import textwrap


def number(value):
    """Four significant digits: more than the measurements carry, few enough not to depend on the solver's last bits."""
    value = round(value, 6)  # a bound reached by the solver is 0, not 1e-16
    if value == int(value) and abs(value) < 1e16:
        return str(int(value))
    return f"{value:.4g}"


def quote(text):
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def string_field(name, text, indent):
    """A long string as adjacent literals, which the parser joins."""
    if len(text) + len(name) + len(indent) + 4 <= 110:
        return [f"{indent}{name}: {quote(text)}"]
    pieces = textwrap.wrap(text, 100 - len(indent), break_on_hyphens=False)
    pieces = [piece + " " for piece in pieces[:-1]] + pieces[-1:]
    return [f"{indent}{name}:"] + [f"{indent}    {quote(piece)}" for piece in pieces]


def message(name, fields, indent=""):
    """fields: (name, value) pairs; a value is a number, bool, str, Enum, or a list of pairs for a nested message."""
    lines = [f"{indent}{name} {{"]
    lines += body(fields, indent + "  ")
    return lines + [f"{indent}}}"]


class Enum(str):
    """A value printed without quotes."""


def body(fields, indent=""):
    lines = []
    for name, value in fields:
        if value is None:
            continue
        if isinstance(value, bool):
            lines.append(f"{indent}{name}: {'true' if value else 'false'}")
        elif isinstance(value, Enum):
            lines.append(f"{indent}{name}: {value}")
        elif isinstance(value, str):
            lines += string_field(name, value, indent)
        elif isinstance(value, list):
            if name in ("points", "step"):  # one short line a point
                inner = " ".join(f"{k}: {number(v)}" for k, v in value)
                lines.append(f"{indent}{name} {{ {inner} }}")
            else:
                lines += message(name, value, indent)
        else:
            lines.append(f"{indent}{name}: {number(value)}")
    return lines
