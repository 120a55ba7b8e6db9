"""What the server says in the terminal as it starts: where it is, and who can reach it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Started:
    """What is true of a server that listens.

    pages      how many there are, in the folder `notebooks`
    link       the address to open, token included
    token      whether one is asked for
    loopback   whether it listens to this machine alone
    capturing  whether calibration data is being captured meanwhile
    embed      origins of the sites that may show the pages inside their own
    """

    pages: int
    notebooks: Path
    link: str
    token: bool
    loopback: bool
    capturing: bool
    embed: tuple[str, ...] = ()


def welcome(started: Started) -> list[str]:
    """The lines, the link on one of its own; a warning where anyone can come in."""
    lines = [
        f"{started.pages} pages from {started.notebooks}",
        "Open this link in a browser:" if started.token else "No token is asked for. Open:",
        started.link,
        "Stop with Ctrl-C.",
    ]
    if not started.token and not started.loopback:
        lines.append("Take care: anyone who can reach this machine can now use its processor.")
    if started.embed:
        lines.append(
            f"Pages may be shown inside {', '.join(started.embed)}; browsers keep the cookies that "
            "this needs only where this server is reached over https."
        )
    if started.capturing:
        lines.append("Preparing calibration data: the model's activations on sample text.")
    return lines
