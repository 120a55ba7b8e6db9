"""One view per lesson: wires controls to methods and figures."""
