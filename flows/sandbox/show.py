"""`gleaner demo`: run it, report it, and stop what was started."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from flows._wiring import services
from flows.sandbox.demo import DemoRun, clear_demo
from flows.sandbox.prefect_runs import FlowRuns
from flows.sandbox.report import DemoFacts, build_report, persist_report, print_summary
from flows.sandbox.script import DemoScript
from flows.sandbox.stack import stop_stack
from flows.sandbox.worlds.registry import find_world


def run_demo(root: Path, script: DemoScript, *, keep: bool, console: Console) -> bool:
    """Run the demo under `root` and return whether the books close. What was started is stopped, whatever happens,
    unless `keep` leaves the services up.
    """
    started = time.monotonic()
    root = root.resolve()
    entry = find_world(script.world)
    clear_demo(root)
    finished = False
    try:
        run = DemoRun(root, script, entry.load(script, root.parent / "cache"))
        stack = run.turn()
        facts = DemoFacts(
            root=root,
            wired=services(),
            script=script,
            world=run.world,
            started_s=started,
            events=run.timeline.events,
            prefect_runs=FlowRuns(stack.prefect_api_url).count(),
        )
        report = build_report(facts, on_step=lambda step: console.print(f"[dim]report: {step}[/]"))
        persist_report(report, root)
        finished = True
    finally:
        if not (keep and finished):
            stop_stack(root)
    print_summary(report, console)
    console.print(f"report: {root / 'report.html'}")
    if keep:
        console.print(f"Prefect       {stack.prefect_ui_url}\nLabel Studio  {stack.label_studio_url}")
        console.print(f"bucket        {stack.s3_endpoint}/{stack.bucket}\nstop them with: gleaner down")
    return bool(report["ledger"]["closes"])
