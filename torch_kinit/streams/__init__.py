"""Where numbers come from: laws as data, and the sources that draw them: torch.Generator, Key and KerasSeed."""
