"""Checks with PyYAML that the columns Celeriac writes for YAML results hold the right values.

`tests/data/yaml-pairs.json` has message bodies, as PyYAML writes them, and the columns that
`tests/yaml.rs` expects for each. The bodies are random values from a seed, of kinds that a
serializer can get wrong, and the results in the captures of real workers.

After a change to the columns, write and check the file again:

    export PYTHONPATH=integration PYTHONHASHSEED=0 CELERIAC_YAML_PAIRS=$PWD/tests/data/yaml-pairs.json
    python -m captures.yaml_pairs make > $CELERIAC_YAML_PAIRS
    cargo test --test yaml -- --ignored columns_are_written
    python -m captures.yaml_pairs check $CELERIAC_YAML_PAIRS

To check more values than those in the file, give `make` a number of bodies and another seed.
"""

import base64
import datetime
import gzip
import json
import random
import sys
from pathlib import Path

import yaml

SEED = 20261123
PAIRS = 250
ROOT = next(folder for folder in Path(__file__).parents if (folder / "Cargo.toml").exists())
DATA = ROOT / "tests" / "data"

WORDS = [
    *"a b the word lorem naïve 日本語 😀 # - ? : [ ] { } , & * ! | > ' \" % @ ` \\ ~ = << 0".split(),
    *["x" * 30, "y" * 90, "a:", "a: b", "#c", " #", "- a", "---", "... b", "''", '""', "\\n"],
    *["\t", "\n", "\n\n", "\r", "\0", "\a", "\x1b", "\x7f", "\x85", "\xa0", "\u2028", "\u2029"],
    *["\ufeff", "\ud800", "\udfff", "\ud83d\ude00", "\ufffd", "\uffff", "\U0010ffff", "  ", "\n "],
]
# Texts that look like another type, or almost.
LOOKS = [
    *"null Null NULL nULL ~ yes No ON off y n true FALSE tRue 0 00 07 08 0o7 0x1F 0xg 0b101".split(),
    *"1_000 _1 +1 -1 + - . .. ... --- 1. 1.0 .5 ._5 -.5 +.5 1e5 1e+5 1.0e5 1.0e+5 .inf -.Inf".split(),
    *"+.INF .nan -.nan nan inf 1:30 1:60 190:20:30.15 2020-01-01 2020-1-1 20200101 = << < !".split(),
    *"2020-01-01T10:00:00 2020-01-01t1:00:00.5Z & * @ ` % # #a a# a: :a ? ?a - -a ---a {} []".split(),
    *["", " ", "\n", "yes\n", "1\n", "2020-01-01 10:00:00.123 -01:30", "2020-01-01 10:00", "a #b"],
    *["a\nb", "a\n", "\na", " a", "a ", "a  b", "a \nb", "a\n b", "\ta", "a\tb", '"a"', "it's"],
    *["x" * 122, "x" * 123, "é" * 122, "é" * 123, "😀" * 110],
]
ZONES = [None, datetime.UTC, datetime.timezone(datetime.timedelta(hours=-9, minutes=30))]


def text(r):
    match r.randrange(8):
        case 0 | 1 | 2:
            return r.choice(LOOKS)
        case 3:
            return r.choice(["", " ", "\n"]).join(r.choices(WORDS, k=r.randrange(1, 12)))
        case 4:
            return " ".join(r.choices(WORDS[:5], k=r.randrange(1, 50)))
        case 5:
            return "".join(r.choices(r.choice([" ab", " ab'\n", ' ab"\\é']), k=r.randrange(1, 200)))
        case 6:
            return "".join(chr(r.randrange(0x300)) for _ in range(r.randrange(12)))
        case _:
            return r.choice(["é", "a é ", '"a" ', "it's ", "\n\n ", "\\ ", " é"]) * r.randrange(1, 30)


def number(r):
    floats = [0.0, -0.0, 0.1, 1e16, 1e22, 1e-7, 5e-324, float("inf"), -float("inf"), float("nan")]
    return r.choice([*floats, r.uniform(-1e9, 1e9), r.randrange(-99, 99), r.randrange(10**40)])


def time(r):
    day = [r.randrange(1, 9999), r.randrange(1, 13), r.randrange(1, 29)]
    if r.random() < 0.5:
        return datetime.date(*day)
    hour = [r.randrange(24), r.randrange(60), r.randrange(60), r.choice([0, r.randrange(10**6)])]
    return datetime.datetime(*day, *hour, tzinfo=r.choice(ZONES))


def scalar(r):
    others = [lambda: None, lambda: r.random() < 0.5, lambda: number(r), lambda: time(r)]
    others.append(lambda: r.randbytes(r.choice([0, 1, 2, 57, 58, 100])))
    return text(r) if r.random() < 0.55 else r.choice(others)()


def key(r, shared):
    if r.random() < 0.1:
        return tuple(key(r, []) for _ in range(r.randrange(3)))
    times = [value for value in shared if isinstance(value, datetime.date)]
    return r.choice(times) if times and r.random() < 0.2 else scalar(r)


def value(r, depth, shared):
    if shared and r.random() < 0.12:
        return r.choice(shared)
    made = scalar(r)
    count = r.choice([0, 1, 2, 3, 5])
    kind = r.random() if depth else 0
    if kind > 0.9:
        made = {key(r, shared) for _ in range(count)}
    elif kind > 0.6:
        made = {}
        # It can contain itself.
        shared += [made] * (r.random() < 0.3)
        make_key = r.choice([lambda: text(r), lambda: key(r, shared)])
        made.update((make_key(), value(r, depth - 1, shared)) for _ in range(count))
    elif kind > 0.35:
        made = []
        shared += [made] * (r.random() < 0.3)
        made += [value(r, depth - 1, shared) for _ in range(count)]
    shared += [made] * (r.random() < 0.2)
    return made


def body(r):
    shared = []
    depth = r.choice([0, 1, 2, 4])
    values = {name: value(r, depth, shared) for name in ("result", "args", "kwargs")}
    children = value(r, 2, shared) if r.random() < 0.3 else []
    meta = {"task_id": "t", "status": "SUCCESS", "children": children, **values}
    return yaml.safe_dump(meta, default_flow_style=r.choice([False, False, None, True]))


def captured():
    """The bodies of results in the captures of all versions of Celery."""
    for path in sorted(DATA.glob("golden/celery-*-yaml.messages.jsonl.gz")):
        with gzip.open(path, "rt") as lines:
            messages = [json.loads(line) for line in lines]
        for message in messages:
            if message["exchange"] != "celeryev":
                yield base64.b64decode(message["body_b64"]).decode()


def make(pairs=PAIRS, seed=SEED):
    bodies = [body(random.Random(f"{seed} {number}")) for number in range(int(pairs))]
    bodies = [body for body in bodies if is_read(body)]
    bodies += captured() if seed == SEED else []
    # One pair per line.
    pairs = (json.dumps({"body": body}) for body in bodies)
    sys.stdout.write("[\n" + ",\n".join(pairs) + "\n]\n")


def is_read(body):
    """Whether PyYAML can read this: not if escapes make a key longer than 1,024 characters."""
    try:
        return yaml.compose(body) is not None
    except yaml.YAMLError:
        return False


def tree(text, *names):
    """The value of a document, or of one of its members, as a tree that can be compared.

    Each node is its tag and its value. A node that contains itself is replaced there by the number
    of levels up to it. Collections are not constructed, because `safe_load` refuses those with keys
    such as lists, which `safe_dump` writes.
    """
    loader = yaml.SafeLoader(text)
    node = loader.get_single_node()
    for name in names:
        members = {key.value: member for key, member in node.value}
        if name not in members:
            return None
        node = members[name]

    def visit(node, above):
        if node in above:
            return "level", len(above) - above.index(node)
        if isinstance(node, yaml.ScalarNode):
            # `repr` is equal for two NaNs, and different for 1 and True.
            return node.tag, repr(loader.construct_object(node))
        above = [*above, node]
        if isinstance(node, yaml.MappingNode):
            loader.flatten_mapping(node)
            items = [(visit(key, above), visit(member, above)) for key, member in node.value]
        else:
            items = [visit(item, above) for item in node.value]
        return node.tag, items

    return visit(node, [])


def is_same(column, value):
    """Whether a column has the value of a member."""
    if column is None:
        return value in (None, NULL)
    return tree(column) == value


NULL = tree("null")


def differences(pairs):
    """Describes each column that does not have the value in the body."""
    for pair in pairs:
        body = pair["body"]
        if "error" in pair:
            yield f"{pair['error']}: {body!r}"
            continue
        for name in ("result", "args", "kwargs"):
            if not is_same(pair[name], tree(body, name)):
                yield f"{name} {pair[name]!r} of {body!r}"
        children = tree(body, "children") or tree("[]")
        if tree(pair["meta"], "children") != children:
            yield f"meta {pair['meta']!r} of {body!r}"


def check(path):
    pairs = json.loads(Path(path).read_text())
    found = list(differences(pairs))
    print(*found, f"{len(pairs)} bodies, {len(found)} differences", sep="\n")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    {"make": make, "check": check}[sys.argv[1]](*sys.argv[2:])
