"""What comes in from outside, read with distrust: checkpoints and documents. No torch, no code, no pickles."""
