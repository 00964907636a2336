"""Names and messages of others reach neither the terminal nor a page as more than text."""

import html
import re
from html.parser import HTMLParser

import pandas
import pytest
from mlflow import MlflowClient
from test_film import tracked

import mfgd as package
from mfgd import compare, film
from mfgd.sweep_summary import write_description
from mfgd.terminal import say, show_plain

HOSTILE = "\x1b[31mred\x9b2J\x07\u202e"
MARKUP = "<img src=x onerror=alert(1)>`|](http://a)*"
LOSSES = f"""
def cauchy(*, width, **objective):
    raise ArithmeticError({HOSTILE!r})
"""
COMMANDS = re.compile(r"[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f\u202e]")
"""What commands a terminal; a carriage return is of the progress bar."""


def assert_text(*texts):
    for text in texts:
        assert not COMMANDS.search(text)


@pytest.mark.parametrize("text", ["a b", "D̂ ≈ C·F, é 文 🙂", "1.5\\n"])
def test_what_prints_stays_as_it_is(text):
    assert show_plain(text) == text


@pytest.mark.parametrize("code", [*range(32), *range(127, 160), 0x202E, 0x2028, 0xDC80])
def test_what_does_not_print_is_its_escape(code):
    shown = show_plain(f"a{chr(code)}b")
    assert shown.isascii()
    assert shown.isprintable()
    assert eval(f'"{shown}"') == f"a{chr(code)}b"


def test_lines_stay_lines(capsys):
    say("a\r\n\tb")
    assert capsys.readouterr().out == "a\\r\n\\tb\n"


def test_a_refusal_is_one_line_of_text(here, tmp_path):
    for argument in (
        f'problem=file problem.path="{HOSTILE}\nmfgd: fine"',
        f"rank={HOSTILE}\nmfgd: fine",
        f"{HOSTILE}=1",
        f"{HOSTILE}",
        f"loss={HOSTILE}",
        f'loss._target_="{HOSTILE}.f"',
        f"--{HOSTILE}",
        f"--config-name={HOSTILE}",
    ):
        done = here(*argument.split(" ", argument.startswith("problem=")))
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("mfgd: ")
        assert_text(done.stderr)
        assert r"\x1b[31mred\x9b2J\x07\u202e" in done.stderr


def test_an_error_of_a_users_function_is_text(here, tmp_path):
    (tmp_path / "losses.py").write_text(LOSSES)
    done = here("loss._target_=losses.cauchy", "+loss.width=1.0", "tracking=memory")
    assert done.returncode == 1
    assert_text(done.stdout, done.stderr)
    assert done.stderr.count(r"ArithmeticError: \x1b[31mred\x9b2J\x07\u202e") == 2
    assert "losses.py" in done.stderr


@pytest.fixture
def sweep(here, tmp_path):
    """A sweep over two files, the name of one of them hostile, and what was printed."""
    names = f"{HOSTILE}{MARKUP}.csv", "b.csv"
    for name in names:
        (tmp_path / name.replace("/", "_")).write_text("1.5,2.5\n3.5,4.25\n")
    paths = ",".join(f'"{name.replace("/", "_")}"' for name in names)
    name = f'tracking.experiment="{HOSTILE}{MARKUP}"'
    line = ("problem=file", f"problem.path={paths}", "rank=1", "steps=2", "seed=0,1", name)
    return here("--multirun", *line, "tracking.figures=0", "workers=1")


def run_compare(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["mfgd-compare", *arguments])
    try:
        compare.main()
    except SystemExit as ended:
        return ended.code
    return 0


def test_names_are_text_wherever_they_are_printed(sweep, monkeypatch, capfd):
    assert sweep.returncode == 0, sweep.stderr
    assert_text(sweep.stdout, sweep.stderr)
    assert r"\x1b[31mred" in sweep.stdout
    experiment = f"--experiment={HOSTILE}{MARKUP}"
    assert run_compare(monkeypatch, experiment) == 2
    runs = package.load_runs(experiment=f"{HOSTILE}{MARKUP}").dropna(subset="parent")
    ids = runs.drop_duplicates("params.problem.path")["run_id"].tolist()
    named = ("--experiment", f"{HOSTILE}{MARKUP}")
    for arguments in (
        named,
        (*named, "--by", "problem.path"),
        (*named, "--effect", "problem.path"),
        (*named, "--importance"),
        ("--diff", *ids),
        (*named, "--columns", HOSTILE),
        (*named, "--where", HOSTILE),
        (*named, "--html", f"{HOSTILE}/a.html"),
        ("--experiment", f"{HOSTILE}nowhere"),
        (f"{HOSTILE}nowhere",),
        (f"--{HOSTILE}",),
    ):
        run_compare(monkeypatch, *arguments)
        said = capfd.readouterr()
        assert said.out + said.err
        assert_text(said.out, said.err)


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)


def list_tags(text):
    parser = Tags()
    parser.feed(text)
    return parser.found


def test_the_description_of_a_sweep_is_text(sweep):
    runs = package.load_runs(experiment=f"{HOSTILE}{MARKUP}")
    parent = runs["parent"].dropna().iloc[0]
    note = MlflowClient().get_run(parent).data.tags["mlflow.note.content"]
    _, _, code, table = note.split("\n\n")
    opened, _, closed = code.split("\n")
    assert opened == closed == "```"
    assert list_tags(table) == []
    # Markdown reads \ before a sign as the sign; HTML reads the rest.
    _, _, *rows = table.split("\n")
    cells = {re.split(r"(?<!\\)\|", row)[1].strip() for row in rows}
    texts = {html.unescape(re.sub(r"\\([^a-zA-Z0-9\s&])", r"\1", cell)) for cell in cells}
    assert texts == {"b.csv", f"{show_plain(HOSTILE)}{MARKUP.replace('/', '_')}.csv"}


@pytest.mark.parametrize("line", ["```", "a ```` b\n```\n<b>", "`" * 7, "plain"])
def test_no_line_ends_the_block_of_code_that_holds_it(line):
    runs = pandas.DataFrame({"run_id": ["a"], "tags.outcome": ["budget"]})
    note = write_description(runs, f"mfgd {line}", {}, 0)
    *_, fence = note.split("\n")
    inside = note.split("\n")[-2]
    assert set(fence) == {"`"}
    assert len(fence) >= 3
    assert fence not in inside
    assert inside == f"mfgd {show_plain(line)}"


def test_a_film_has_no_text_of_others(tmp_path):
    run = tracked(tmp_path)
    run.config.tracking.experiment = MARKUP
    film.film(run, tmp_path / "run.html")
    page = (tmp_path / "run.html").read_text()
    assert re.findall("<title>(.*)</title>", page) == ["rank 2, lr 0.3"]
    assert "onerror" not in page
