"""run a published run again, and say whether its numbers are identical, agree or differ

The run is read from a folder or the Hub: run.yaml, report.json and predictions. Its metrics must be those of its
predictions. Verdicts: identical (the same predictions and values), agrees (the difference is within its paired 95 %
interval on the same examples), differs. The exit code is 1 if anything differs.
"""

import argparse

from hf_lm.parsing.ranges import Count, Seed, number

EXAMPLE = """hf-lm reproduce user/name
hf-lm reproduce out/reviews --seed 2 --output_dir out/reviews-2
hf-lm reproduce out/pretrain --steps 50
hf-lm reproduce user/name --check"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="an output folder, or a Hub id: user/name or user/name@revision")
    parser.add_argument("--output_dir", default="", help="of the new run (default: out/reproduced-NAME)")
    parser.add_argument("--seed", type=number(Seed), default=None, help="another seed: the numbers should then agree")
    parser.add_argument("--steps", type=number(Count), default=0, help="stop there and compare the loss; 0 runs all")
    parser.add_argument("--check", action="store_true", help="do not train: measure the published weights again")
    parser.add_argument("--update_card", action="store_true", help="add the verdict to the card of the run's folder")


def run(args: argparse.Namespace) -> None:
    from pathlib import Path

    from hf_lm.files import write_whole
    from hf_lm.hub.credentials import printable
    from hf_lm.reporting.terminal import aligned
    from hf_lm.scoring.reproduce import DIFFERS, as_report, check_weights, overall, reproduce

    if args.check and (args.steps or args.seed is not None or args.output_dir):
        raise ValueError("--check trains nothing: leave --steps, --seed and --output_dir out.")
    card = Path(args.run) / "README.md"
    if args.update_card and not card.is_file():
        raise ValueError(f"--update_card needs a folder with a card; {args.run} has no README.md here.")
    name = args.run.rstrip("/").rpartition("/")[2].partition("@")[0]
    output_dir = Path(args.output_dir or Path("out") / f"reproduced-{name}")
    if args.check:
        verdicts = check_weights(args.run)
    else:
        verdicts = reproduce(args.run, output_dir, seed=args.seed, steps=args.steps)
    rows = [["", "published", "here", "verdict"]]
    rows += [[each.what, f"{each.published:.5g}", f"{each.here:.5g}", each.verdict] for each in verdicts]
    print("\n" + printable("\n".join(aligned(rows))))
    verdict = overall(verdicts)
    print(printable(f"\n{args.run}: {verdict}"))
    if output_dir.is_dir() and not args.check:
        import json

        write_whole(output_dir / "reproduction.json", json.dumps(as_report(args.run, verdicts), indent=1) + "\n")
    if args.update_card and verdict != DIFFERS:
        from datetime import UTC, datetime

        line = f"**Reproduced** on {datetime.now(UTC):%Y-%m-%d}: {verdict} (`hf-lm reproduce`)."
        text = card.read_text(encoding="utf-8")
        kept = [old for old in text.split("\n") if not old.startswith("**Reproduced** on ")]
        write_whole(card, "\n".join(kept).rstrip("\n") + f"\n\n{line}\n")
    raise SystemExit(verdict == DIFFERS)
