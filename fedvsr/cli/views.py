"""Views of a run's progress: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from statistics import fmean

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID
from rich.table import Table

from fedvsr.cli.common import plain_column, plain_console, say, sheet
from fedvsr.cli.scores import gain_text
from fedvsr.federation.executors import Delay, Fault
from fedvsr.federation.rounds import ClientFinished
from fedvsr.inference.scores import headline
from fedvsr.metrics import METRICS
from fedvsr.runs.events import Event, RoundRecorded, RunStarted

_ROWS_SHOWN = 12
_REASONS_SHOWN = 3
# The heading of how many clients are in the sum of a round that lacks some.
_SHORT = "in sum"
# Seconds between two lines on a clip's progress outside a terminal.
_LINE_EVERY_S = 10.0
# HTML of a notebook's output. It sets no colours, so the notebook's theme applies.
_NOTEBOOK = '<pre style="line-height:1.3;white-space:pre-wrap">{code}</pre>'


class _Bar(Progress):
    """A progress bar that prints nothing at all if it is disabled."""

    def stop(self) -> None:
        # Before release 14, rich prints an empty line outside a terminal, even if disabled.
        if not self.disable:
            super().stop()


class PreparationView:
    """A progress bar for each video or folder that is cut, and for frames that are degraded."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = _Bar(
            plain_column("preparing {task.description}"),
            BarColumn(),
            plain_column("{task.completed}/{task.total}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks = dict[str, TaskID]()

    def __call__(self, video: str, done: int, total: int) -> None:
        """Show how many frames of a video or a folder have been prepared."""
        if video not in self._tasks:
            if not self._console.is_terminal:
                self._console.print(f"preparing {video}")
            self._tasks[video] = self._progress.add_task(video, total=total)
        if not self._console.is_terminal:
            return
        self._progress.start()
        self._progress.update(self._tasks[video], completed=done, total=max(done, total))

    def __enter__(self) -> PreparationView:
        return self

    def __exit__(self, *_: object) -> None:
        if self._tasks:
            self._progress.stop()


class StepsView:
    """A bar of the steps done, if standard error is a terminal."""

    def __init__(self) -> None:
        console = plain_console(stderr=True)
        self._bar = _Bar(
            BarColumn(),
            plain_column("{task.completed}/{task.total}"),
            plain_column("{task.description}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None)

    def __call__(self, step: str, done: int, total: int) -> None:
        """Show the step that begins, the steps done, and their number."""
        self._bar.update(self._task, description=step, completed=done, total=total)
        self._bar.refresh()

    def say(self, line: str) -> None:
        """Print a line on standard output, above the bar if there is one."""
        self._bar.stop()
        say(line)
        self._bar.start()

    def __enter__(self) -> StepsView:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


class FramesView:
    """Frames done of a clip: a bar in a terminal, a line every ten seconds elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = _Bar(
            plain_column("{task.description}"),
            BarColumn(),
            plain_column("{task.fields[detail]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._name = ""
        self._started_s = self._printed_s = time.monotonic()

    def say(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        self._bar.console.print(line, soft_wrap=True)

    def begin(self, name: str) -> Callable[[float, int], None]:
        """Begin a clip.

        Returns:
            A function to call with the frames done and the clip's frames, 0 if unknown.
        """
        self._name = name
        self._started_s = self._printed_s = time.monotonic()
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(name, total=None, detail="")
        self._bar.start()
        return self._update

    def _update(self, done: float, total: int) -> None:
        now_s = time.monotonic()
        frames_per_s = done / max(now_s - self._started_s, 1e-9)
        remaining_s = round(max(0, total - done) / frames_per_s) if done else 0
        detail = f"{done:.0f}/{total} frames" if total else f"{done:.0f} frames"
        detail += f"  {frames_per_s:.3g} frames/s"
        if total and done:
            detail += f"  left {timedelta(seconds=remaining_s)}"
        assert self._task is not None
        self._bar.update(self._task, completed=done, total=total or None, detail=detail)
        if not self._console.is_terminal and now_s - self._printed_s > _LINE_EVERY_S:
            self._printed_s = now_s
            self.say(f"{self._name}: {detail}")

    def __enter__(self) -> FramesView:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def follow(events: Iterable[Event], console: Console, before: Sequence[RoundRecorded] = ()) -> None:
    """Show a run's events until it ends.

    Args:
        events: the events.
        console: where to show them.
        before: the rounds of a run that is resumed, shown first.
    """
    view = _RunView(console, before)
    if console.is_jupyter:
        _follow_in_notebook(events, view)
        return
    if not console.is_terminal:
        for event in events:
            view.update(event)
            for line in view.lines(event):
                console.print(line, soft_wrap=True)
        return
    with Live(console=console, refresh_per_second=4, get_renderable=view.render) as live:
        for event in events:
            view.update(event)
            if isinstance(event, Fault):
                # Printed above the table, it stays when the table is redrawn.
                live.console.print(_fault_line(event))
            live.refresh()


def _follow_in_notebook(events: Iterable[Event], view: _RunView) -> None:
    """Show the table of a terminal in a notebook's output, which is replaced at each event."""
    from IPython.display import HTML, display

    def shown(fault_lines: list[str]) -> HTML:
        page = sheet(width=100)
        for line in fault_lines:
            page.print(line)
        page.print(view.render())
        return HTML(page.export_html(inline_styles=True, code_format=_NOTEBOOK))

    fault_lines = list[str]()
    handle = display(shown(fault_lines), display_id=True)
    for event in events:
        view.update(event)
        if isinstance(event, Fault):
            fault_lines.append(_fault_line(event))
        handle.update(shown(fault_lines))


class _RunView:
    """The state of the display, fed by events."""

    def __init__(self, console: Console, before: Sequence[RoundRecorded]) -> None:
        self._console = console
        self._started: RunStarted | None = None
        self._before_start = "starting Ray and the driver ..."
        self._rounds = [*before]
        self._restarted = False
        self._finished_clients = self._sampled_clients = 0
        self._round_started_s = time.monotonic()

    def update(self, event: Event) -> None:
        if isinstance(event, Delay):
            self._before_start = f"{event} ..."
        elif isinstance(event, RunStarted):
            self._restarted = self._started is not None
            self._started = event
            # Later rounds are repeated: the run, or its driver, died after the checkpoint.
            self._rounds = [e for e in self._rounds if e.round_idx <= event.round_idx]
        elif isinstance(event, ClientFinished):
            self._finished_clients = event.num_finished
            self._sampled_clients = event.num_sampled
        elif isinstance(event, RoundRecorded):
            self._add(event)
            self._finished_clients = 0
        if not isinstance(event, ClientFinished | Fault):
            self._round_started_s = time.monotonic()

    def _add(self, event: RoundRecorded) -> None:
        if self._rounds and self._rounds[-1].round_idx == event.round_idx:
            # A resumed run has only made the missing scores of the round before.
            self._rounds[-1] = replace(self._rounds[-1], scores=event.scores)
        else:
            self._rounds.append(event)

    def lines(self, event: Event) -> list[str]:
        if isinstance(event, Delay):
            return [str(event)]
        if isinstance(event, RunStarted):
            lines = [self._title(), *([] if self._restarted else self._earlier())]
            if event.round_idx:
                lines.append(f"resuming after round {event.round_idx}")
            return [*lines, *event.notes]
        if isinstance(event, Fault):
            return [_fault_line(event)]
        if isinstance(event, RoundRecorded):
            line = self._line(self._rounds[-1])
            return [f"{line}  left {self._time_left()}" if event.round_idx else line]
        return []

    def _earlier(self) -> list[str]:
        hidden, shown = self._rounds[:-_ROWS_SHOWN], self._rounds[-_ROWS_SHOWN:]
        note = [f"{len(hidden)} earlier rounds are not shown"] if hidden else []
        return [*note, *map(self._line, shown)]

    def _line(self, event: RoundRecorded) -> str:
        assert self._started is not None
        cells = [f"{name} {cell}" for name, cell in _cells(event).items() if cell]
        return f"round {event.round_idx}/{self._started.num_rounds}  {'  '.join(cells)}"

    def render(self) -> Group:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("round", justify="right")
        names = ["clients", "loss", "test set", "RGB PSNR", "over bicubic", "SSIM", "seconds"]
        shown = self._rounds[-_ROWS_SHOWN:]
        lacking = [event for event in shown if event.num_aggregated < event.num_wanted]
        if lacking:
            names.insert(1, _SHORT)
        for name in names:
            table.add_column(name, justify="right")
        for event in shown:
            cells = _cells(event)
            if _SHORT in cells:
                # The reasons stand below: a terminal may be narrow.
                cells[_SHORT] = f"{event.num_aggregated} of {event.num_wanted}"
            table.add_row(
                str(event.round_idx), *(cells.get(str(c.header), "") for c in table.columns[1:])
            )
        if self._started is None:
            return Group(self._before_start)
        done = self._rounds[-1].round_idx if self._rounds else self._started.round_idx
        total = self._started.num_rounds
        bar = Progress(
            plain_column("round {task.fields[current]}/{task.total}"),
            BarColumn(),
            plain_column("{task.fields[detail]}"),
        )
        detail = f"left {self._time_left()}"
        if self._sampled_clients:
            detail = f"{self._finished_clients}/{self._sampled_clients} clients   {detail}"
        bar.add_task(
            "",
            total=total,
            completed=done,
            current=min(done + 1, total),
            detail="" if done == total else detail,
        )
        reasons = (f"round {e.round_idx}: {_aggregated(e)}" for e in lacking[-_REASONS_SHOWN:])
        return Group(self._title(), *self._started.notes, table, *reasons, bar)

    def _title(self) -> str:
        assert self._started is not None
        run = self._started
        return (
            f"{run.run_id}: {run.parameters}, {run.num_clients} clients, "
            f"{run.num_rounds} rounds on {run.device}"
        )

    def _time_left(self) -> str:
        walls_s = [event.wall_s for event in self._rounds if event.round_idx]
        if self._started is None or not walls_s:
            return "?"
        # The first round also starts the client processes, so only recent rounds count.
        per_round_s = fmean(walls_s[-3:])
        last_round = self._rounds[-1].round_idx
        remaining_s = per_round_s * (self._started.num_rounds - last_round)
        if last_round < self._started.num_rounds:
            remaining_s -= min(time.monotonic() - self._round_started_s, per_round_s)
        return str(timedelta(seconds=round(remaining_s)))


def _fault_line(fault: Fault) -> str:
    consequence = "given up" if fault.final else "retried"
    return f"{fault.kind}: {fault.message}; {consequence}"


def _aggregated(event: RoundRecorded) -> str:
    """How many of a round's clients are in its sum, and why not all."""
    counts = {
        "offline": event.num_absent,
        "failed": event.num_failed,
        "not finite": event.num_rejected,
        "lost": event.num_upload_failures,
    }
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)
    return f"{event.num_aggregated} of {event.num_wanted} clients ({reasons})"


def _cells(event: RoundRecorded) -> dict[str, str]:
    cells = dict[str, str]()
    if event.client_ids:
        cells["clients"] = ",".join(map(str, event.client_ids[:8]))
    if event.num_aggregated < event.num_wanted:
        cells[_SHORT] = _aggregated(event)
    if event.loss is not None:
        cells["loss"] = f"{event.loss:.4f}"
    if event.scores:
        cells["test set"], mean = headline(event.scores)
        # A record of an older version may lack RGB.
        for head, column in (("RGB PSNR", "psnr_db"), ("SSIM", "ssim")):
            if column in mean.values:
                cells[head] = METRICS[column].text(mean.values[column])
            if column == "psnr_db":
                cells["over bicubic"] = gain_text(mean)
    cells["seconds"] = f"{event.wall_s:.1f}"
    return cells
