"""What the server says in the terminal as it starts: where it is, and who can reach it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Started:
    """The facts about a running server.

    pages      how many there are, in the folder `notebooks`
    link       the address to open, token included
    token      whether one is asked for
    loopback   whether it listens only to this machine
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
    """The lines, the link on a line of its own, and a warning if anyone can get in."""
    lines = [
        f"{started.pages} pages from {started.notebooks}",
        "Open this link in a browser:" if started.token else "No token is needed. Open:",
        started.link,
        "Stop with Ctrl-C.",
    ]
    if not started.token and not started.loopback:
        lines.append("Warning: anyone who can reach this machine can now run computations on it.")
    if started.embed:
        lines.append(
            f"Pages may be shown inside {', '.join(started.embed)}; browsers keep the cookies "
            "needed for this only if the server is reached over https."
        )
    if started.capturing:
        lines.append("Preparing calibration data: the model's activations on sample text.")
    return lines
