"""``python -m deploy.loop`` (``make loop``): new reviews become a new answer, under load, without a hand on it.

    a site → collect_reviews → retrain → release → the live answer has changed

The site, the stack, Airflow's runs and what Slack would be told are all of this machine; what it leaves lies under
``var/loop``. Then the drill: somebody turns all stars of the site around, the same DAGs run, and the gates keep the
Champion. All the while requests come in, each answer judged; one wrong answer, and the loop has failed.
"""

import argparse
import csv
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

from deploy.demo import PORTS, SENTENCES, Demo, ask, free_ports, read_json, served, show_table, shown, stop
from deploy.settings import ROOT, Settings, StartError, read_settings
from deploy.slack_channel import Channel, slack_channel

AIRFLOW = ROOT / ".venv-airflow" / "bin" / "python"
FIRST_REVIEWS = 150  # what the first Champion knows; two in five of their stars are wrong
FIRST_DAY, SECOND_DAY = "2026-11-22", "2026-11-29"
BEST, WORST = 5, 1  # stars
RATE = 10  # requests per second


@dataclass
class Loop(Demo):
    """A run of the loop: besides what a demo has, its channel and the configuration of its retrainings."""

    config: str = ""
    channel: Channel | None = None
    told: int = 0

    @property
    def site_reviews(self) -> Path:
        return self.folder / "site.jsonl"

    @property
    def site(self) -> Path:
        return self.folder / "site.yaml"

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {
            "NUNCHI_COLLECT_SITES": str(self.site),
            "NUNCHI_RETRAIN_CONFIG": self.config,
            "NUNCHI_SOAK_SECONDS": "5",
            "NUNCHI_AIRFLOW_RETRY_SECONDS": "1",
            "SLACK_WEBHOOK_URL": self.channel.url,
        }

    def dag(self, name: str, *arguments: str) -> None:
        """Run a DAG from its first task to its last, and print what Slack was told meanwhile.

        Raises:
            StartError: it failed; the sentence names the log.
        """
        self.console.print(f"[dim]$ airflow dags test {name} {' '.join(arguments)}[/dim]", highlight=False)
        log = self.folder / "log" / f"{time.strftime('%H%M%S')}-{name}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [str(AIRFLOW), "-m", "dags", "dags", "test", name, *arguments]
        with log.open("w", encoding="utf-8") as output:
            done = subprocess.run(command, cwd=ROOT, env=self.environment, stdout=output, stderr=subprocess.STDOUT)
        for message in self.channel.messages[self.told :]:
            self.console.print(f"  Slack: {message['text']}", highlight=False)
        self.told = len(self.channel.messages)
        if done.returncode:
            raise StartError(f"the DAG {name} has failed; {shown(log)} says why")

    def publish(self, reviews: list[dict]) -> None:
        """What the site shows from now on, newest first."""
        part = self.site_reviews.with_suffix(".part")
        part.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in reviews), encoding="utf-8")
        part.replace(self.site_reviews)

    @property
    def versions(self) -> list[dict]:
        return read_json(self.folder / "model_registry.json")["versions"]

    @property
    def champion(self) -> int | None:
        return next((each["number"] for each in self.versions if each["stage"] == "Champion"), None)

    @property
    def serving(self) -> int:
        return read_json(self.repository / "serving.json")["version"]


def loop(settings: Settings, reviews: list[dict], config: str, repository: Path | None) -> None:
    """``repository``: what serves in the beginning; without one, the first Champion is made of the first reviews.

    Raises:
        StartError: a step has failed, or has not come to what it should.
    """
    folder = settings.var / "loop"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    run = Loop(folder, dict(zip(PORTS, free_ports(len(PORTS)), strict=True)), config=config)
    began = time.monotonic()
    few, many = ([], reviews) if repository else (reviews[:FIRST_REVIEWS], reviews[FIRST_REVIEWS:])
    wrong = [number % 5 < 2 for number in range(len(few))]
    old = [shown_on(FIRST_DAY, [review], turned=turn)[0] for review, turn in zip(few, wrong, strict=True)]
    new, turned = shown_on(SECOND_DAY, many), shown_on(SECOND_DAY, many, turned=True)
    with slack_channel() as run.channel, review_site(run, old):
        if repository:
            shutil.copytree(repository, run.repository)
        else:
            with run.step("first: a poor Champion, of few reviews and wrong stars, promoted by hand") as said:
                said += make_first_champion(run)
        with served(run) as url, under_load(run) as table:
            go_round(run, url, new + old, turned + old)
        run.rows.append(("under load", time.monotonic() - began, judged(table), shown(table)))
    kept = folder / "slack.json"
    kept.write_text(json.dumps(run.channel.messages, ensure_ascii=False, indent=1), encoding="utf-8")
    run.rows.append(("Slack", 0.0, f"{len(run.channel.messages)} messages", shown(kept)))
    show_table(run, time.monotonic() - began)


def go_round(run: Loop, url: str, reviews: list[dict], turned: list[dict]) -> None:
    """The loop and the drill, while the stack answers."""
    before = ask(url)
    with run.step("collect: the reviews of one day more") as said:
        said += collect(run, reviews)
    with run.step("retrain: on all there is, to a Candidate") as said:
        said += retrain(run)
    with run.step("release: gates, promotion, export, smoke test") as said:
        said += release(run)
    after = ask(url)
    show_change(run, before, after)
    with run.step("drill: every star of that day turned around, collected, retrained on, and released?") as said:
        collect(run, turned)
        retrain(run)
        said += refuse(run)
    if ask(url) != after:
        raise StartError(f"the answers have changed, although version {run.champion} is the Champion still")


def read_reviews(file: Path) -> list[dict]:
    """Rows with ``document`` and ``label`` 0 or 1, in the order of the file."""
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))


def shown_on(day: str, reviews: list[dict], *, turned: bool = False) -> list[dict]:
    """As the site shows them: five stars for who liked it and one for who did not, or the other way round."""
    stars = [BEST, WORST] if turned else [WORST, BEST]
    return [
        {
            "review_id": review["id"], "text": review["document"], "stars": stars[int(review["label"])],
            "written_at": f"{day}T12:00:00+09:00", "author": "작성자",
        }
        for review in reviews
    ]  # fmt: skip


@contextmanager
def review_site(run: Loop, reviews: list[dict]) -> Iterator[None]:
    """The site of the collection's own tests, over HTTP; it shows what `Loop.publish` was given last."""
    run.publish(reviews)
    options = ["--reviews", str(run.site_reviews), "--yaml", str(run.site), "--name", "loop", "--page-size", "100"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.review_site", *options], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        if not process.stdout.readline():
            raise StartError("the site did not start; its last lines above say why")
        yield
    finally:
        process.kill()
        process.communicate()


@contextmanager
def under_load(run: Loop) -> Iterator[Path]:
    """Requests, each answer judged, while the block lasts; afterwards the file has the table and a line of figures."""
    table = run.folder / "traffic.txt"
    options = ["--rate", str(RATE), "--seconds", "86400", "--json"]
    with table.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "loadtest.traffic", *options], cwd=ROOT, env=run.environment, stdout=output,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        yield table
    finally:
        stop(process)


def judged(table: Path) -> str:
    """Raises:
    StartError: an answer was wrong or was not given.
    """
    lines = table.read_text(encoding="utf-8").splitlines()
    figures = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else None
    if not figures or figures["failed"] or len(figures["versions"]) != 2:
        raise StartError(f"not every request was answered right, by the old version or the new one; {shown(table)}")
    by = " and ".join(f"{count:,} by version {version}" for version, count in figures["versions"].items())
    return f"{figures['sent']:,} requests: {by}, {figures['refused']} refused, none failed; p99 {figures['p99_ms']} ms"


def make_first_champion(run: Loop) -> list[str]:
    run.dag("collect_reviews", day_after(FIRST_DAY))
    run.dag("retrain")
    run.run("training.registry", "promote", "1", "--force")
    run.run("export")
    return [f"{FIRST_REVIEWS} reviews; test F1 {run.versions[0]['metrics']['f1']:.3f}", shown(run.repository)]


def collect(run: Loop, reviews: list[dict]) -> list[str]:
    run.publish(reviews)
    run.dag("collect_reviews", day_after(SECOND_DAY))
    collected = run.folder / "collected"
    return [f"{len(reviews):,} reviews on the site", shown(collected / "_card.html")]


def retrain(run: Loop) -> list[str]:
    run.dag("retrain")
    newest = run.versions[-1]
    f1 = newest["metrics"]["f1"]
    return [f"version {newest['number']} is {newest['stage']}; test F1 {f1:.3f}", shown(run.folder / "searches")]


def release(run: Loop) -> list[str]:
    newest, served_before = run.versions[-1]["number"], run.serving
    run.dag("release", "--conf", json.dumps({"version": newest}))
    if run.champion != newest or run.serving == served_before:
        raise StartError(f"version {newest} was refused by the gates: {gates_of(run.versions[-1])}")
    return [f"version {newest} is Champion and answers as {run.serving}", shown(run.repository)]


def refuse(run: Loop) -> list[str]:
    newest, champion, serving = run.versions[-1]["number"], run.champion, run.serving
    run.dag("release", "--conf", json.dumps({"version": newest}))
    if (run.champion, run.serving) != (champion, serving):
        raise StartError(f"version {newest}, trained on turned stars, has passed: {gates_of(run.versions[-1])}")
    return [f"version {newest} is refused: {gates_of(run.versions[-1])}", shown(run.folder / "model_registry.json")]


def gates_of(version: dict) -> str:
    """Those that it failed."""
    said = {name: text for name, text in version["tags"].items() if name.startswith("gate.")}
    return "; ".join(f"{name.removeprefix('gate.')} {text}" for name, text in said.items() if text.startswith("failed"))


def show_change(run: Loop, before: dict, after: dict) -> None:
    for text, old, new in zip(SENTENCES, before["predictions"], after["predictions"], strict=True):
        was, now = (f"{row['label']} {row['confidence']:.2f}" for row in (old, new))
        run.console.print(f"{was} → {now}  {text}", highlight=False)
    if before["predictions"] == after["predictions"] or before["model_version"] == after["model_version"]:
        raise StartError("the live answer has not changed")


def day_after(day: str) -> str:
    """The logical date of the run that collects ``day``, by the end of its interval."""
    return (date.fromisoformat(day) + timedelta(days=1)).isoformat()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.loop", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--reviews", type=Path, default=ROOT / "training" / "sample_reviews.tsv", help="TSV with id, document, label"
    )
    parser.add_argument(
        "--config", type=Path, default=ROOT / "training" / "configs" / "loop.yaml", help="of the retrainings"
    )
    parser.add_argument(
        "--repository", type=Path, help="what serves in the beginning (default: a Champion of the first reviews)"
    )
    options = parser.parse_args(argv)
    try:
        config = str(options.config.resolve())
        loop(read_settings(), read_reviews(options.reviews), config, options.repository)
    except StartError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
