"""What all audits rest on: intervals, resampling, verdicts, and refusals that metrics share."""
