"""What a trained model is used for.

::

    evaluate   starts (where) → recordings (read) → measure (score each start) → summarize (over
               episodes; metrics has the formulas) → results (records); examples (starts to show)
    report     page, with headline (in words), plots, pictures, training_curves
    imagine    a single episode, with its own, other or random actions
"""
