"""The cheapest repair, proven: fixes tried layer by layer, kept where held-out images confirm them."""
