"""The controller: between a robot that wants an action now and a planner that takes its time.

::

    config = ControllerConfig(deadline=0.08)
    controller = Controller(model, planner, objective, config, limits=limits)
    controller.begin(seed=0)
    while True:
        action, decision = controller.act(Observation(frames=..., state=...))
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from math import gcd
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from tokenwm.control.decision import (
    ControllerConfig,
    Decision,
    LimitsError,
    SafeAction,
    Thought,
    Verifier,
)
from tokenwm.control.history import History
from tokenwm.control.limits import Limits, limits_for
from tokenwm.control.planners.base import NoPlanError, Planner
from tokenwm.errors import TokenwmError
from tokenwm.imagination.context import Context
from tokenwm.imagination.world import Observation, World
from tokenwm.shapes import check_shape, check_type

State = TypeVar("State")
Numbers = NDArray[Any]


class Controller(Generic[State]):
    """A planner in closed loop: observes, plans every few steps, and always has an action in time.

    With a deadline the world is used by one thread of the controller's own, so that a plan which
    takes too long goes on while the robot does what is left of the last one; it is taken up when it
    is there, from the step at which it is. Leave the world alone meanwhile, and :meth:`close` at
    the end.

    Args:
        world: The world.
        planner: Anything with ``plan(world, state, objective, warm)``.
        objective: More is better.
        config: Settings.
        limits: Hard limits. Every action that leaves the controller is within them; if none is, it
            raises :class:`LimitsError`.
        safe_action: Taken where nothing is left of the last plan. Without one a late plan is waited
            for.
        verifier: Judges every plan; only accepted ones are taken.
        context_of: Makes a context of the first observation; ``world.context`` by default.
        clock: Seconds.

    Raises:
        LimitsError: The safe action breaks a limit.
        TokenwmError: A setting is of the wrong kind, or the limits are for another rate.
    """

    def __init__(
        self,
        world: World[State],
        planner: Planner,
        objective: Any,
        config: ControllerConfig | None = None,
        *,
        limits: Limits | None = None,
        safe_action: SafeAction | None = None,
        verifier: Verifier | None = None,
        context_of: Callable[[Observation], Context] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.config = ControllerConfig() if config is None else config
        check_type("config", self.config, ControllerConfig)
        self.world, self.planner, self.objective = world, planner, objective
        self._num_stacked = world.vocabulary.actions_per_step
        self._dims = world.vocabulary.action.num_dimensions // self._num_stacked
        # One action of the robot at a time leaves the controller and is checked.
        self.limits = None
        if limits is not None:
            self.limits = replace(limits_for(limits, world), actions_per_step=1)
        self._safe_action, self._verifier, self._clock = safe_action, verifier, clock
        self._taken: list[Numbers] = []  # by the robot, the last ones
        self._where: torch.Tensor | None = None
        if safe_action is not None and not callable(safe_action):
            check_shape("the safe action", np.asarray(safe_action), (self._dims,))
            if limits is None or not (limits.increments or limits.predicate):  # which need a state
                self._checked_safe(np.asarray(safe_action))
        self._history = History(world, context_of)
        self._worker = ThreadPoolExecutor(1) if self.config.deadline is not None else None
        self._jobs: list[Future[Any]] = []
        self.begin()

    def begin(
        self,
        context: Context | None = None,
        *,
        taken: Sequence[Numbers] = (),
        seed: int = 0,
    ) -> None:
        """Start an episode.

        Args:
            context: Observed steps, one row, the last of which is what :meth:`act` gets first; None
                if nothing was observed before.
            taken: The robot's last commands, ``(dims,)`` each, the newest last, of which limits of
                speed and acceleration follow; without them the first ones are not limited by these.
            seed: Of the noise of imagined futures.
        """
        self.end()
        self._jobs.clear()
        self._history.begin(context, seed)
        self._step = 0
        self._taken, self._where = list(taken), None
        self._thought: Thought | None = None  # the last plan that was taken up
        self._made: Thought | None = None  # the last one that was made, taken up or not
        self._due: Future[Thought] | None = None
        self._has_failed = False

    def end(self) -> None:
        """Wait for what is under way; the world is the caller's again, until :meth:`begin`."""
        wait(self._jobs)

    def close(self) -> None:
        """Wait for what is under way, and end the thread."""
        if self._worker is not None:
            self._worker.shutdown()

    def act(self, observation: Observation) -> tuple[Numbers, Decision]:
        """Choose the robot's next action.

        Args:
            observation: One row, at every step of the robot.

        Returns:
            ``(dims,)`` in units, and how it came about.

        Raises:
            LimitsError: No action is within the hard limits.
            TokenwmError: The observation does not fit the world, or the last call ended in an
                error: what the robot then did is not known here.
        """
        began = self._clock()
        if len(observation.frames) != 1:
            raise TokenwmError(
                f"the observation has {len(observation.frames)} rows; a controller has one robot"
            )
        if self._has_failed:
            raise TokenwmError(
                "the last act() ended in an error, so it is not known what the robot did then; "
                "begin() a new episode"
            )
        self._has_failed = True
        action, decision = self._act(observation, began)
        self._has_failed = False
        return action, decision

    def _act(self, observation: Observation, began: float) -> tuple[Numbers, Decision]:
        step = self._step
        self._where = observation.state
        self._take_up_late(step)
        is_planned = step % self.config.every == 0
        step_size = gcd(self.config.every, self._num_stacked)
        if step % step_size == 0:
            self._submit(self._history.observe, step, observation, list(self._taken))
        decision = Decision(step=step, came="plan", is_planned=is_planned)
        if is_planned:
            decision = self._planned(decision, began)
        last = self._last_planned(step)
        if self._thought is None or self._thought.step != last:
            decision = replace(decision, came="rest of the last plan")
        action, decision = self._within_limits(decision, observation)
        self._taken = [*self._taken, action][-max(2, self._num_stacked) :]
        self._step += 1
        return action, replace(decision, seconds=self._clock() - began)

    def _last_planned(self, step: int) -> int:
        return step - step % self.config.every

    def _planned(self, decision: Decision, began: float) -> Decision:
        """The decision with the plan that is due, or why it is not there."""
        step, deadline = decision.step, self.config.deadline
        if self._due is not None:
            self._wait(self._due, step, began)
            self._take_up_late(step)
            if self._has_fallback(step):
                reason = "the plan of an earlier step is not there yet"
                return replace(decision, missed_deadline=True, reason=reason)
        due = self._due = self._submit(self._think, step, self._made)
        self._wait(due, step, began)
        is_late = deadline is not None and (not due.done() or self._clock() - began > deadline)
        if is_late and self._has_fallback(step):
            reason = f"the plan took longer than {deadline:g} s"
            return replace(decision, missed_deadline=True, reason=reason)
        self._raise_errors()
        thought = self._take_result()
        if isinstance(thought, NoPlanError):
            return replace(decision, missed_deadline=is_late, reason=str(thought))
        decision = replace(
            decision,
            missed_deadline=is_late,
            plan=thought.plan,
            verdict=thought.verdict,
            surprise=thought.surprise,
        )
        reason = self._objection(thought, step)
        if reason:
            return replace(decision, reason=reason)
        self._thought = thought
        return decision

    def _wait(self, due: "Future[Thought]", step: int, began: float) -> None:
        """Wait for a plan, up to the deadline if there is something else to do."""
        deadline = self.config.deadline
        if deadline is None or not self._has_fallback(step):
            wait([due])
        else:
            wait([due], timeout=max(0.0, deadline - (self._clock() - began)))

    def _has_fallback(self, step: int) -> bool:
        return self._safe_action is not None or self._rest(step) is not None

    def _rest(self, step: int) -> Numbers | None:
        """The action of the last plan for a step, ``(dims,)``; None where it has ended."""
        thought = self._thought
        if thought is None or step - thought.step >= len(thought.robot):
            return None
        action: Numbers = thought.robot[step - thought.step]
        return action

    def _take_up_late(self, step: int) -> None:
        """Take a plan that came after its step, if nothing speaks against it now."""
        self._raise_errors()
        if self._due is None or not self._due.done():
            return
        thought = self._take_result()
        if isinstance(thought, Thought) and not self._objection(thought, step):
            self._thought = thought

    def _take_result(self) -> Thought | NoPlanError:
        """The plan that is there, which the next search begins with, or why there is none."""
        due, self._due = self._due, None
        assert due is not None
        try:
            self._made = due.result()
        except NoPlanError as error:
            return error
        return self._made

    def _raise_errors(self) -> None:
        """Raise what a job in the thread raised, the first one first; no plan is no error."""
        while self._jobs and self._jobs[0].done():
            with suppress(NoPlanError):
                self._jobs.pop(0).result()

    def _objection(self, thought: Thought, step: int) -> str:
        """The reason not to take a plan up at a step; empty if there is none."""
        if thought.verdict is not None and thought.verdict.decision != "accepted":
            return f"the plan is {thought.verdict.decision}: {thought.verdict.reason}"
        first = step - thought.step
        part = thought.robot[first : first + self.config.every - step % self.config.every]
        if not len(part):
            return "the plan ends before this step"
        breach = self._broken(part)
        return f"the plan breaks a limit: {breach}" if breach else ""

    def _broken(self, robot: Numbers) -> str:
        """The limit that ``(T, dims)`` actions break from here on; empty if none."""
        if self.limits is None:
            return "" if np.isfinite(robot).all() else "it is not finite"
        before = np.stack(self._taken)[None] if self._taken else None
        (breach,) = self.limits.check(robot[None], self._where, before)
        return "" if breach is None else str(breach)

    def _within_limits(
        self, decision: Decision, observation: Observation
    ) -> tuple[Numbers, Decision]:
        """The first action that is within the limits: of the plan, else the safe one."""
        reasons = [decision.reason] if decision.reason else []
        rest = self._rest(decision.step)
        if rest is not None:
            broken = self._broken(rest[None])
            if not broken:
                return rest, decision
            reasons.append(f"the rest of the plan breaks a limit: {broken}")
        elif not reasons:
            reasons.append("nothing is left of the last plan")
        safe = self._safe_action
        if safe is None:
            raise LimitsError(
                f"step {decision.step}: {'; '.join(reasons)}; and no safe action is given: name "
                "one (safe_action=…), or stop the robot"
            )
        try:
            action = self._checked_safe(np.asarray(safe(observation) if callable(safe) else safe))
        except LimitsError as error:
            message = f"step {decision.step}: {'; '.join(reasons)}; and {error}; stop the robot"
            raise LimitsError(message) from error
        return action, replace(decision, came="safe action", reason="; ".join(reasons))

    def _checked_safe(self, action: Numbers) -> Numbers:
        check_shape("the safe action", action, (self._dims,))
        broken = self._broken(action[None])
        if broken:
            raise LimitsError(f"the safe action breaks a limit: {broken}")
        return action

    def _submit(self, job: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        """Run a job now or, with a deadline, in the thread after those before it."""
        if self._worker is not None:
            future = self._worker.submit(job, *arguments)
        else:
            future = Future()
            try:
                future.set_result(job(*arguments))
            except NoPlanError as error:
                future.set_exception(error)
        self._jobs.append(future)
        return future

    def _think(self, step: int, last: Thought | None) -> Thought:
        state = self._history.state_at(step)
        warm = None if last is None else last.plan.shifted(step - last.step, self._num_stacked)
        plan = self.planner.plan(self.world, state, self.objective, warm)
        check_shape("the plan", plan.actions, ("H", self._dims * self._num_stacked))
        verdict = None
        if self._verifier is not None:
            verdict = self._verifier(self.world, state, plan.actions)
        robot = plan.actions.detach().cpu().numpy().reshape(-1, self._dims)
        return Thought(
            step=step,
            plan=plan,
            robot=robot,
            verdict=verdict,
            surprise=self._history.surprise,
        )
