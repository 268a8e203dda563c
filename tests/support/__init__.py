"""What the tests share: a real gateway to talk to, and waiting without sleeping."""
