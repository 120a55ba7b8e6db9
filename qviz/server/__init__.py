"""The lesson server behind `qviz serve`: Voilà with our template, our pages and nothing else.

What differs from plain Voilà, and why:
- only notebooks are served; no directory listing, no files, no template or theme by URL;
- a token by default, and addresses other than this machine's own are refused on the loopback
  interface (otherwise any web page could reach the server through a name that resolves to
  127.0.0.1);
- warm kernels are started one after the other and in the order of the lessons: sixteen Pythons
  importing torch at the same moment would make the first page the slowest;
- the pages may not load anything from elsewhere (Content-Security-Policy).
"""

from qviz.server.app import LessonServer, serve
from qviz.server.options import ServeError, ServeOptions, find_notebooks, lesson_pages, new_token

__all__ = [
    "LessonServer",
    "ServeError",
    "ServeOptions",
    "find_notebooks",
    "lesson_pages",
    "new_token",
    "serve",
]
