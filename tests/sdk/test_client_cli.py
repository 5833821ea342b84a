"""The client's command line: flags, exit codes, what is printed and what is saved. No Triton needed."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest

import client as program
from pipelines.protocol.columns import text_column
from pipelines.protocol.errors import InvalidMedia, InvalidOptions
from pipelines.protocol.options import OPTION_FIELDS, TRANSFER_OPTIONS
from tests.conftest import ROOT
from tests.support.stub_server import Reply, StubServer, event, talker, unary
from tests.support.toy_answers import answer

BROKEN = {"error": text_column(InvalidMedia("no video", hint="send one").to_json())}


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with StubServer() as running:
        yield running


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """A folder with a video, an image, a broken image and a text."""
    for name, data in {
        "a.mp4": b"v",
        "b.JPG": b"i",
        "bad.png": b"x",
        "sub/c.mkv": b"v",
        "d.txt": b"t",
    }.items():
        (tmp_path / "media" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "media" / name).write_bytes(data)
    return tmp_path / "media"


@pytest.fixture
def served(stub: StubServer) -> StubServer:
    """Videos of four frames, images of one; the medium `x` is broken."""
    image = answer([1], mask=[b"M"], overlay=[b"O"])
    stub.infer(lambda seen: unary(BROKEN if seen.body.endswith(b"x") else image))
    first, last = (
        answer(frames, final=final, mask=[b"M", b"N"], overlay=[b"O", b"P"], video=b"F")
        for frames, final in (([0, 1], False), ([2, 3], True))
    )
    stub.stream(Reply(chunks=[event(first), event(last)]))
    return stub


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "nothing to do"),
        (["--nonsense"], 2, "--nonsense"),
        (["--task", "cooking"], 2, "'cooking' (choose from 'classification', "),
        (["--video-paths", "absent.mp4"], 2, "error: absent.mp4: no such file"),
        (
            ["--video-paths", "{media}/d.txt", "--url", "ftp://x"],
            2,
            "error: url='ftp://x' is not the address",
        ),
        *(
            (
                ["--info", "--timeout", text],
                2,
                f"'{text}' is not a number of seconds above 0, up to 1e+06",
            )
            for text in ("0", "nan", "inf", "soon")
        ),
        (["--info", "--url", "http://127.0.0.1:1"], 3, "error: no server at http://127.0.0.1:1"),
        (["--info", "--url", "grpc://127.0.0.1:1"], 3, "error: no server at grpc://127.0.0.1:1"),
        (["--help"], 0, ""),
    ],
)
def test_usage(
    arguments: list[str], code: int, said: str, media: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        got = program.main([argument.format(media=media) for argument in arguments])
    except SystemExit as exit_:
        got = int(exit_.code or 0)
    errors = capsys.readouterr().err
    assert (got, said in errors) == (code, True), errors
    assert code == 0 or sum("error: " in line for line in errors.splitlines()) == 1


def test_a_folder_is_walked_and_one_failure_spoils_no_other(
    served: StubServer, media: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.main(["--url", served.url, "--video-paths", str(media)]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        f"{media}/a.mp4: 4 frames, cat 25.0 % (stub)",
        f"{media}/b.JPG: 1 frame, cat 16.7 % (stub)",
        f"{media}/sub/c.mkv: 4 frames, cat 25.0 % (stub)",
    ]
    assert err.splitlines() == [  # and no progress into a pipe
        f"error: {media}/bad.png: no video (send one)",
        f"skipped in {media}: 1 of suffix .txt (d.txt)",
    ]


@pytest.mark.parametrize("stream", [True, False])
def test_json_lines(
    stream: bool, served: StubServer, media: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flag = "--stream" if stream else "--no-stream"
    assert program.main(["--url", served.url, "--video-paths", str(media / "a.mp4"), "--json", flag]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == (4 if stream else 1)
    assert lines[-1] == {
        "file": str(media / "a.mp4"),
        "frame_index": 3 if stream else 1,
        "pts_s": 0.3 if stream else 0.1,
        "class_pixels": {"background": 3, "cat": 3} if stream else {"background": 5, "cat": 1},
        "decoder": "stub",
    }


@pytest.mark.parametrize(
    ("flags", "files"),
    [
        ([], ["a.jsonl", "b.jsonl"]),
        (
            ["--dump-images", "--originals", "--end", "1"],
            [
                *("a.jsonl", "a_000000_mask.png", "a_000003_original.jpg", "a_000003_overlay.jpg"),
                *(
                    "a_overlay.mp4",
                    "b.jsonl",
                    "b_000000_original.jpg",
                    "b_000001_mask.png",
                    "b_000001_overlay.jpg",
                ),
            ],
        ),
        (["--overlay", "raw", "--mask", "raw"], ["a_000002_overlay.ppm", "b_000001_mask.pgm"]),
    ],
)
def test_files(flags: list[str], files: list[str], served: StubServer, media: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    paths = ["--video-paths", str(media / "a.mp4"), "--image-paths", str(media / "b.JPG")]
    assert program.main(["--url", served.url, *paths, "--output", str(out), *flags]) == 0
    written = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(files) <= set(written)
    assert len(written["a.jsonl"].splitlines()) == 4
    if "--originals" in flags:
        assert (written["a_overlay.mp4"], written["a_000003_overlay.jpg"]) == (b"FF", b"P")
        plain = [seen.head for seen in served.seen if "alpha" in seen.head]
        assert [(head["alpha"], head["overlay"], head["end_s"]) for head in plain] == [("0", "jpeg", "1")]
    if "raw" in flags:
        assert written["b_000001_mask.pgm"] == b"P5\n3 2\n255\nM"


def test_a_wrong_option_ends_the_run(
    stub: StubServer, media: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The options are the same for every medium; the server alone judges them."""
    stub.stream(Reply(chunks=[event({"error": text_column(InvalidOptions("stride=0").to_json())})]))
    assert program.main(["--url", stub.url, "--video-paths", str(media), "--stream", "--stride", "0"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {media}/a.mp4: stride=0\nskipped in ")


@pytest.mark.parametrize("output", ["a.mp4", "a.mp4/within"])
def test_files_need_a_folder(
    output: str, served: StubServer, media: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(media / output)
    assert program.main(["--url", served.url, "--video-paths", str(media), "--output", path]) == 2
    out, err = capsys.readouterr()
    said = f"error: no folder for files: {media / 'a.mp4'} is a file (name another: --output)\n"
    assert (out, err) == ("", said)


@pytest.mark.parametrize("flags", ["--threshold --start --end", "--score-threshold --start-s --end-s"])
def test_flags_are_named_as_their_options_or_shorter(flags: str, served: StubServer, media: Path) -> None:
    given = [text for pair in zip(flags.split(), "123", strict=True) for text in pair]
    assert program.main(["--url", served.url, "--image-paths", str(media / "b.JPG"), *given]) == 0
    sent = served.seen[-1].head["parameters"]
    assert [sent[name] for name in ("score_threshold", "start_s", "end_s")] == ["1", "2", "3"]


def test_every_option_of_a_medium_has_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    """The others are named to those only who speak the protocol themselves."""
    with pytest.raises(SystemExit):
        program.main(["--help"])
    told = capsys.readouterr().out
    assert all(
        f"--{name.replace('_', '-')} " in told for name in OPTION_FIELDS if name not in TRANSFER_OPTIONS
    )


def test_a_server_that_goes_away_ends_the_run(
    stub: StubServer, media: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.stream(Reply(chunks=[event(answer(final=False))], cut=True))
    assert program.main(["--url", stub.url, "--video-paths", str(media)]) == 3
    assert "broke off" in capsys.readouterr().err


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_ctrl_c(scheme: str) -> None:
    """Interrupted while it waits: no traceback, and the exit code that shells expect."""
    with talker() as port:
        process = subprocess.Popen(
            [sys.executable, "-c", WAITING, "--info", "--url", f"{scheme}://127.0.0.1:{port}"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"waiting\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"")


def run(
    command: Sequence[str | bytes], stdout: int | IO[bytes] = subprocess.PIPE, **environ: str
) -> subprocess.CompletedProcess[bytes]:
    """The program in a process of its own."""
    return subprocess.run(
        [sys.executable, "client.py", *command],
        cwd=ROOT,
        env={**os.environ, **environ},
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )


def test_names_that_are_no_text(served: StubServer, tmp_path: Path) -> None:
    """In a terminal of ASCII alone; the folder for files has such a name too."""
    name, film, out = b"caf\xe9\n\x1b[31m.png", b"-x \xff.mkv", os.fsencode(tmp_path) + b"/\xfe"
    folder = tmp_path / "in"
    folder.mkdir()
    for one in (name, film):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + one)).write_bytes(b"v")
    asked = ["--video-paths", str(folder), "--output", os.fsdecode(out), "--json", "--mask", "raw"]
    command = ["--url", served.url, *asked]
    done = run(command, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, b"")
    shown = [json.loads(line)["file"] for line in done.stdout.decode("ascii").splitlines()]
    assert {os.path.basename(os.fsencode(path)) for path in shown} == {name, film}
    assert done.stdout.decode("ascii").replace("\n", "").isprintable()
    written = set(os.listdir(out))
    assert {name[:-4] + b".jsonl", name[:-4] + b"_000001_mask.pgm", film[:-4] + b".jsonl"} <= written
    done = run(["--url", served.url, "--image-paths", os.fsencode(folder) + b"/" + name, b"/gone\x1b\xff"])
    assert (done.returncode, done.stderr.decode()) == (
        *(2, "error: /gone\\u001b\\udcff: no such file or folder\n"),
    )


@pytest.mark.parametrize("flags", ["--info", "--json", "", "--help"])
@pytest.mark.parametrize("where", ["left", "full", "closed"])
def test_a_stdout_that_takes_nothing(flags: str, where: str, served: StubServer, media: Path) -> None:
    command = ["--url", served.url, "--video-paths", str(media / "a.mp4"), *flags.split()]
    if where == "closed":
        text = shlex.join([sys.executable, "client.py", *command])
        done = subprocess.run(
            f"{text} >&-", shell=True, cwd=ROOT, stderr=subprocess.PIPE, timeout=60, check=False
        )
        assert done.returncode == 0
        assert flags == "--help" or done.stderr == b""  # argparse prints its help there instead
        return
    if where == "full":
        with open("/dev/full", "wb") as full:
            done = run(command, full)
        said = b"" if flags == "--help" else b"error: stdout: No space left on device\n"
    else:
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "wb") as pipe:
            done = run(command, pipe)
        said = b""
    assert (done.returncode, done.stderr) == (0 if flags == "--help" else 1, said)


def test_what_cannot_be_read_or_written(
    served: StubServer, media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is one line, and the others go on."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.jsonl").symlink_to("/dev/full")
    (out / "a-2.jsonl").mkdir()
    os.mkfifo(media / "p.mp4")
    (media / "empty.mp4").write_bytes(b"")
    (media / "sub" / "a.mp4").write_bytes(b"v")
    long = media / f"{'x' * 250}.mkv"
    long.write_bytes(b"v")
    names = ["a.mp4", "sub/a.mp4", "p.mp4", "empty.mp4", "b.JPG", long.name]
    asked = [str(media / name) for name in names]
    assert program.main(["--url", served.url, "--video-paths", *asked, "--output", str(out)]) == 1
    said, errors = capsys.readouterr()
    assert errors.splitlines() == [
        f"error: {out}/a.jsonl: No space left on device",
        f"error: {out}/a-2.jsonl: Is a directory",
        f"error: {media}/p.mp4: {media}/p.mp4 is a pipe, not a file (save it as a file, or send bytes)",
    ]
    assert len(said.splitlines()) == 3
    assert {"empty.jsonl", "b.jsonl", f"{200 * 'x'}.jsonl"} <= {path.name for path in out.iterdir()}


def test_names_of_files_do_not_collide(served: StubServer, media: Path, tmp_path: Path) -> None:
    for name in ("a-2.mkv", "a.mkv"):
        (media / name).write_bytes(b"v")
    flags = ["--url", served.url, "--output", str(tmp_path / "out")]
    asked = [
        "--video-paths",
        str(media / "a-2.mkv"),
        str(media / "a.mp4"),
        "--video-paths",
        str(media / "a.mkv"),
    ]
    assert program.main([*flags, *asked]) == 0
    assert {"a-2.jsonl", "a-3.jsonl", "a.jsonl"} <= set(os.listdir(tmp_path / "out"))


def test_a_folder_with_nothing_to_send_says_what_is_in_it(
    media: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (media / "texts").mkdir()
    (media / "texts" / "t.md").write_bytes(b"")
    assert program.main(["--video-paths", str(media / "texts")]) == 2
    assert "no media in this folder; skipped: 1 of suffix .md (t.md); name" in capsys.readouterr().err


@pytest.mark.parametrize(
    "fields", [{"class_names": ("a", "b", "c")}, {"mask": [b"{"] * 2}, {"mask": [b"[" * 9999] * 2}]
)
def test_an_answer_that_makes_no_sense(
    fields: dict[str, Any], stub: StubServer, media: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.serve(replace(answer(), **fields))
    flags = ["--mask", "rle", "--json", "--video-paths", str(media / "a.mp4")]
    assert program.main(["--url", stub.url, *flags]) == 1
    out, errors = capsys.readouterr()
    assert (out, errors.count("\n")) == ("", 1)
    assert errors.startswith(f"error: {media}/a.mp4: the ")


def test_a_fault_of_the_client_is_a_sentence(
    stub: StubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "_ask", lambda *_: dict[str, int]()["x"])
    assert program.main(["--url", stub.url, "--info"]) == 1
    assert capsys.readouterr().err == "error: KeyError: 'x' (a fault of the client: report it)\n"


WAITING = """
import sys, client
ask = client.Client.info
def info(self):
    print("waiting", flush=True)
    return ask(self)
client.Client.info = info
sys.exit(client.main(sys.argv[1:]))
"""


def test_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A server's certificate is checked, and SSL_CERT_FILE adds an authority."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl for a certificate")
    pem = tmp_path / "both.pem"
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    key = ["-newkey", "rsa:2048", "-nodes", "-keyout", str(pem), "-out", str(pem)]
    make = ["openssl", "req", "-x509", *key, *name]
    subprocess.run(make, check=True, timeout=60, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    with StubServer(context) as stub:
        assert program.main(["--url", stub.url, "--info"]) == 3
        assert "error: no TLS with https://127.0.0.1" in capsys.readouterr().err
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
        assert program.main(["--url", stub.url, "--info"]) == 0
