"""A page to play in: an imagined robot that people steer in the browser, several at once."""
