"""Serves models that people have, asks them over both protocols, and compares with what was measured.

    python -m scripts.tried            one server with all of them; exit code 1 if an answer is wrong
    python -m scripts.tried --write    also docs/models-tried.md

Models and media are those of a folder `shared/data` beside the project.
"""

from __future__ import annotations

import argparse
import functools
import io
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image

from client import Client
from pipelines.assembly import make_pipeline
from pipelines.media.medium import Limits
from pipelines.protocol.answers import Answer
from pipelines.protocol.errors import TrividError
from pipelines.protocol.options import Options
from pipelines.settings.model import ModelSettings
from pipelines.zoo import resolve
from scripts import ROOT
from scripts.servers import Server, start_server
from scripts.tried.cases import CASES, LABELS, MODELS, Case, Picture
from scripts.tried.judging import faults, told

PAGE = ROOT / "docs" / "models-tried.md"
HEAD = Path(__file__).with_name("page.md")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One question to a model over one protocol, and what is wrong with the answer; empty: nothing."""

    case: Case
    picture: Picture
    protocol: str
    answer: str
    wrong: str


def encoded(picture: Picture) -> bytes:
    """A picture as PNG, so that no second compression changes it."""
    if picture.file.suffix == ".jpg":
        image = Image.open(picture.file).convert("RGB")
    else:
        with av.open(str(picture.file)) as container:
            frames = container.decode(video=0)
            pixels = next(frame for at, frame in enumerate(frames) if at == picture.frame).to_ndarray(
                format="rgb24"
            )
            image = Image.fromarray(pixels)
    if picture.crop is not None:
        image = image.crop(picture.crop)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def ask(client: Client, case: Case, picture: Picture) -> Answer:
    if case.labels in ("coco", "face"):
        return client.ask_model(case.name, encoded(picture), score_threshold=0.4)
    return client.ask_model(case.name, encoded(picture))


def try_all(server: Server) -> Iterator[Tried]:
    """Every question to every model over both protocols."""
    for protocol, url in (("gRPC", server.grpc_url), ("HTTP", server.http_url)):
        with Client(url, timeout_s=60) as client:
            for case in CASES:
                for picture, expected in case.asked:
                    try:
                        answer = ask(client, case, picture)
                        wrong = "; ".join(faults(answer, expected, functools.partial(ask, client, case)))
                        words = told(answer, expected)
                    except TrividError as error:
                        words, wrong = "", str(error)
                    yield Tried(case=case, picture=picture, protocol=protocol, answer=words, wrong=wrong)


def served(folder: Path) -> list[Tried]:
    for name, labels in LABELS.items():
        (folder / f"{name}.txt").write_text("\n".join(labels) + "\n")
    arguments = [text for case in CASES for text in case.arguments(folder)]
    with start_server(folder, *arguments, "--allow-code", "--endpoints", "media") as server:
        return list(try_all(server))


def bare(case: Case, folder: Path) -> str:
    """What becomes of a model if the server gets only its labels."""
    labels = str(folder / f"{case.labels}.txt") if case.labels else ""
    choice = ModelSettings(source=str(MODELS / case.file), labels=labels)
    try:
        pipeline = make_pipeline(resolve(choice, allow_code=True), "cpu", limits=Limits())
        options = Options(score_threshold=0.4 if case.labels in ("coco", "face") else -1.0)

        def ask_it(picture: Picture) -> Answer:
            return pipeline.task.answer.concatenate(list(pipeline.run(encoded(picture), options)))

        wrong = [
            fault for picture, expected in case.asked for fault in faults(ask_it(picture), expected, ask_it)
        ]
    except TrividError as error:
        return f"refused: {error}"
    pipeline.batcher.close()
    return f"differs: {wrong[0]}" if wrong else "as measured"


def page(tried: list[Tried], bares: Mapping[str, str]) -> str:
    """The page: what each model needs, and a row for each question."""
    needs = ["| model | without flags | flags |", "| --- | --- | --- |"]
    for case in CASES:
        flags = " ".join(f"`--{flag} {value}`" for flag, value in case.flags.items()) or "none"
        needs.append(f"| {case.file} | {bares[case.name]} | {flags} |")
    rows = ["| model | picture | answer | as measured |", "| --- | --- | --- | --- |"]
    for one in tried:
        if one.protocol == "gRPC":
            both = [other for other in tried if (other.case, other.picture) == (one.case, one.picture)]
            verdict = next((other.wrong for other in both if other.wrong), "yes")
            rows.append(f"| {one.case.file} | {one.picture} | {one.answer} | {verdict} |")
    good = len({one.case.name for one in tried} - {one.case.name for one in tried if one.wrong})
    count = f"{good} of {len(CASES)} models answer as measured, over gRPC and HTTP."
    text = HEAD.read_text().replace("{COUNT}", count).replace("{NEEDS}", "\n".join(needs))
    return text.replace("{ROWS}", "\n".join(rows))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.tried", description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    asked = parser.parse_args()
    if not MODELS.is_dir():
        print(f"no folder {MODELS}", file=sys.stderr)
        return 2
    np.set_printoptions(precision=3)
    with tempfile.TemporaryDirectory() as folder:
        tried = served(Path(folder))
        bares = {case.name: bare(case, Path(folder)) for case in CASES} if asked.write else {}
    for one in tried:
        print(
            f"{'WRONG' if one.wrong else 'ok':6}{one.case.name} {one.protocol} {one.picture}: "
            f"{one.wrong or one.answer}"
        )
    if asked.write:
        PAGE.write_text(page(tried, bares))
    return 1 if any(one.wrong for one in tried) else 0


if __name__ == "__main__":
    sys.exit(main())
