"""What is measured rather than counted: time, memory and energy of a forward pass, dense and with zeros skipped."""
