"""What the learner sees: widgets, figures and one view per lesson."""
