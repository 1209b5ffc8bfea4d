"""The decode loop over a StepModel."""
