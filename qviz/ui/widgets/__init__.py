"""Own anywidgets: a Python file and a JavaScript module each."""
