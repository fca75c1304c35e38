"""What a gate decided and why: in words, on the terminal, as JSON and as JUnit XML."""
