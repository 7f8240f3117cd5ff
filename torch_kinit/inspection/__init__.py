"""Looking at a model: is it initialized as planned, how does its signal flow, what do its laws look like."""
