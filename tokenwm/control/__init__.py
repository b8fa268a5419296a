"""Deciding: what is wanted, what is tried, and what a world model says comes of it.

::

    model = tokenwm.load("runs/quickstart/world_model")
    starts = tokenwm.starts("runs/quickstart/frames", count=1, horizon=5)
    state, goal = model.start(starts.context(model)), starts.future_frames[0, -1]
    plan = tokenwm.ICEM(horizon=5).plan(model, state, tokenwm.GoalImage(model, goal))
    actions = model.unstack_actions(plan.actions)  # what the robot does next, one after another
"""
