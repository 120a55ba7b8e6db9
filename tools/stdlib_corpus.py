"""The training corpus of the bundled model: the standard library of the running Python.

`documents()` reads every usable source file and every help topic; `split()` divides them by
*module*, so that a held-out module and its own tests are both unseen in training.  Splitting by
file would not do: `json/decoder.py` and `test/test_json/test_decode.py` quote each other.
`bundled_texts()` cuts the calibration and evaluation texts that ship with the model.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import random
import re
import sysconfig
import zlib
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

STDLIB = Path(sysconfig.get_path("stdlib"))

# Generated tables, copies, and inputs of the parser's own tests.  Their repeated bytes are easy
# to predict and would flatter the model, or are no Python that anybody would want it to write.
SKIPPED = re.compile(
    r"(^|/)(site-packages|dist-packages|__pycache__|encodings|encoded_modules|cjkencodings"
    r"|lib2to3/tests/data|pydoc_data|tokenize_tests|crashers|config-[^/]*)/"
    r"|(^|/)(_sysconfigdata|bad_?syntax|badcert)[^/]*\.py$"
    r"|^(stringprep|html/entities|_compat_pickle|opcode|token|keyword)\.py$"
    r"|^test/(test_multibytecodec|test_codecmaps|test_stringprep|re_tests|mp_)[^/]*\.py$"
)

# Modules that share code or tests under different names count as one module in the split.
FAMILIES = {
    "os": ["os", "ntpath", "posixpath", "genericpath", "stat", "nturl2path"],
    "re": ["re", "sre_compile", "sre_constants", "sre_parse", "sre"],
    "tokenize": ["tokenize", "lib2to3", "tabnanny"],
    "pickle": ["pickle", "pickletools", "picklecommon", "pickletester", "copyreg", "xpickle"],
    "collections": ["collections", "userdict", "userlist", "userstring", "deque", "defaultdict"],
    "builtins": ["list", "seq", "string_tests", "mapping", "test_list", "user"],
    "urllib": ["urllib", "urlparse", "urllibnet", "robotparser"],
    "http": ["http", "httplib", "httpservers", "cookie"],
    "profile": ["profile", "cprofile", "cProfile", "pstats"],
    "audio": ["wave", "sunau", "aifc", "chunk", "sndhdr", "audiotests"],
    "compression": ["lzma", "bz2", "gzip", "compression", "zlib"],
    "asyncore": ["asyncore", "asynchat", "smtpd"],
    "site": ["site", "sitebuiltins"],
    "subprocess": ["subprocess", "bootsubprocess"],
    "interpreter": ["cmd_line"],
    "dbm": ["dbm", "whichdb", "shelve"],
    "typing": ["typing", "genericalias", "generic"],
    "asyncio": ["asyncio", "asyncgen", "async"],
    "unittest": ["unittest", "testmock"],
    "xml": ["xml", "minidom", "pulldom", "sax", "pyexpat"],
    "threading": ["threading", "threadsignals", "threadedtempfile", "thread", "threading_local"],
}
FAMILY_OF = {name: family for family, names in FAMILIES.items() for name in names}

# The help topics are the only long prose in the library; they teach the model English and are
# one of the calibration texts, so they are not left to chance.
ALWAYS_TRAINING = {"pydoc_data"}
HELD_OUT_SHARE = 0.045
LARGEST_HELD_OUT = 0.005  # no single module may make up more than a ninth of the held-out text


@dataclass(frozen=True)
class Document:
    module: str  # unit of the split
    path: str  # relative to the standard library
    text: str


def is_table(text: str) -> bool:
    """Whether a source file is mostly data: long lines, digits and escapes, or repetition."""
    lines = text.splitlines()
    if len(text) < 400 or max(map(len, lines)) > 400:
        return True
    escapes = re.findall(r"\\x[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|[0-9a-fA-F]{16,}|\d", text)
    data_characters = sum(map(len, escapes))
    packed = len(zlib.compress(text.encode())) / len(text)
    return data_characters / len(text) > 0.10 or packed < 0.11


def module_of(path: str, library_modules: set[str]) -> str:
    """The unit of the split that a file belongs to; a test belongs to the module it tests."""
    parts = path.removesuffix(".py").split("/")
    if parts[0] not in ("test", "ctypes", "distutils") and len(parts) > 1:
        return FAMILY_OF.get(parts[0], parts[0])
    if parts[0] != "test":
        name = parts[0].removeprefix("_py").strip("_")
        return FAMILY_OF.get(name, name)
    stem = parts[1].removeprefix("test_").strip("_").lower()
    candidates = [stem, stem.rstrip("0123456789")]
    while "_" in stem:
        stem = stem.rpartition("_")[0]
        candidates += [stem, stem.rstrip("0123456789")]
    for name in candidates:
        if name in FAMILY_OF or name in library_modules:
            return FAMILY_OF.get(name, name)
    # `datetimetester`, `zipfile64`: a module's name with something glued to it.
    glued = [m for m in library_modules if len(m) >= 5 and stem.startswith(m)]
    if glued:
        name = max(glued, key=len)
        return FAMILY_OF.get(name, name)
    return f"test:{stem}"


def documents() -> list[Document]:
    """Every usable source file and help topic, in a fixed order."""
    files = sorted(STDLIB.rglob("*.py"), key=lambda file: file.relative_to(STDLIB).as_posix())
    paths = [file.relative_to(STDLIB).as_posix() for file in files]
    library_modules = {
        re.sub(r"^_py|^_|_$", "", path.split("/")[0].removesuffix(".py"))
        for path in paths
        if not path.startswith(("test/", "site-packages/"))
    } - {"__future__", "this"}
    found, seen = [], set()
    for path in paths:
        if SKIPPED.search(path):
            continue
        try:
            text = (STDLIB / path).read_bytes().decode().replace("\r\n", "\n").strip() + "\n"
        except UnicodeDecodeError:
            continue  # an old encoding, used by tests of exactly that
        digest = sha256(text.encode()).digest()
        if digest not in seen and not is_table(text):
            seen.add(digest)
            found.append(Document(module_of(path, library_modules), path, text))
    topics = importlib.import_module("pydoc_data.topics").topics
    return found + [
        Document("pydoc_data", f"pydoc_data/topics/{name}", topics[name].strip() + "\n")
        for name in sorted(topics)
    ]


def split(found: list[Document]) -> tuple[list[str], list[str]]:
    """Names of the training and the held-out modules.

    Library modules are taken in the order of a hash of their name until the held-out share is
    reached, each with its tests; one that is too big is passed over.  Groups that consist of
    tests alone (tests of builtins and of C modules) always train.
    """
    size: dict[str, int] = {}
    library = set()
    for document in found:
        size[document.module] = size.get(document.module, 0) + len(document.text.encode())
        if not document.path.startswith("test/"):
            library.add(document.module)
    total = sum(size.values())
    held_out, taken = set(), 0
    for name in sorted(library - ALWAYS_TRAINING, key=lambda name: sha256(name.encode()).digest()):
        room = 1.01 * HELD_OUT_SHARE * total - taken
        if size[name] <= min(room, LARGEST_HELD_OUT * total):
            held_out.add(name)
            taken += size[name]
    return sorted(set(size) - held_out), sorted(held_out)


@dataclass(frozen=True)
class BundledText:
    name: str
    role: str  # 'calibration' or 'evaluation'
    domain: str
    description: str
    sources: list[str]
    text: str


def in_hash_order(found: list[Document]) -> list[Document]:
    """Documents in an order that has nothing to do with their names or contents."""
    return sorted(found, key=lambda document: sha256(document.path.encode()).digest())


def take(found: list[Document], limit: int, *, largest: int, smallest: int = 0) -> list[Document]:
    """Whole documents of a middling size in hash order, up to `limit` bytes together."""
    taken, size = [], 0
    for document in in_hash_order(found):
        length = len(document.text.encode())
        if smallest <= length <= min(largest, limit - size):
            taken.append(document)
            size += length
    return taken


def prose(document: Document) -> list[str]:
    """Paragraphs of running English in the docstrings of a source file."""
    paragraphs = []
    for node in ast.walk(ast.parse(document.text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            for paragraph in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
                plain = inspect.cleandoc(paragraph)
                letters = len(re.findall(r"[A-Za-z ,.\n]", plain))
                sentences = re.fullmatch(r"[A-Z][a-z]* [^:]*[^:]\.", plain, re.DOTALL)
                if sentences and len(plain) >= 160 and letters >= 0.96 * len(plain):
                    paragraphs.append(plain + "\n")
    return paragraphs


def number_table(size: int, seed: int = 2026) -> str:
    """Comma-separated random numbers: text on which a code model's activations are unusual."""
    rng = random.Random(seed)
    rows, length = ["id,a,b,c,d,e\n"], 13
    while length < size:
        values = [f"{rng.gauss(0, 10 ** rng.randint(0, 4)):.4f}" for _ in range(5)]
        rows.append(",".join([str(len(rows)), *values]) + "\n")
        length += len(rows[-1])
    return "".join(rows)


def bundled_texts(
    found: list[Document], training: list[str], held_out: list[str]
) -> list[BundledText]:
    """The texts that ship with the model."""
    library = [d for d in found if not d.path.startswith(("test/", "pydoc_data/", "idlelib/"))]
    known = [d for d in library if d.module in set(training) and "/test" not in d.path]
    unseen = [d for d in library if d.module in set(held_out) and "/test" not in d.path]
    topics = [d for d in found if d.module == "pydoc_data"]
    evaluation = take(unseen, 160_000, largest=40_000)
    python = take(known, 56_000, largest=16_000, smallest=4_000)
    docs = take(topics, 48_000, largest=16_000)
    english, size = {}, 0
    for document in in_hash_order([d for d in known if d not in python]):
        paragraphs = prose(document)
        if paragraphs and size < 40_000:
            english[document.path] = "\n".join(paragraphs)
            size += len(english[document.path])
    return [
        BundledText(
            "heldout_python",
            "evaluation",
            "python",
            "Whole source files of standard library modules that the model has never seen: neither "
            "the modules nor their tests were in its training text. For perplexity.",
            [d.path for d in evaluation],
            "\n".join(d.text for d in evaluation),
        ),
        BundledText(
            "python",
            "calibration",
            "python",
            "Whole source files of standard library modules from the training text: the matching "
            "domain for calibration. Do not measure perplexity on it.",
            [d.path for d in python],
            "\n".join(d.text for d in python),
        ),
        BundledText(
            "docs",
            "calibration",
            "docs",
            "Help topics of the Python language (pydoc_data.topics), from the training text: "
            "technical prose with short examples.",
            [d.path for d in docs],
            "\n".join(d.text for d in docs),
        ),
        BundledText(
            "english",
            "calibration",
            "english",
            "Paragraphs of running English out of docstrings of modules in the training text, "
            "without any code around them: seen in training, but a mixture that the model never "
            "reads in one piece.",
            list(english),
            "\n".join(english.values()),
        ),
        BundledText(
            "numbers",
            "calibration",
            "numbers",
            "Comma-separated random numbers from a seeded generator; in no training text. The "
            "wrong domain on purpose.",
            [],
            number_table(40_000),
        ),
    ]
