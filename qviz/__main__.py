"""`python -m qviz` is the `qviz` command."""

from qviz.cli import main

raise SystemExit(main())
