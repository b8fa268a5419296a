"""Checkpoints and datasets on the Hugging Face hub: private things stay, all is checked."""
