"""Fine-tuning: the loop, optimizers, freezing, processes, and runs that resume exactly."""
